"""The memory of what addresses accepted: what is offered, for how long it is kept, and how much of it."""

from __future__ import annotations

import threading

import pytest

from ggml_rpc.server.offers import EXPIRY_SECONDS, MAX_ADDRESSES, Offers
from ggml_rpc.server.protocols import CANDIDATES, Announcement

FULL = CANDIDATES[24]
EMPTY = CANDIDATES[0]


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def offers(clock: Clock) -> Offers:
    return Offers(clock)


def name(offers: Offers, address: str = "a", candidates: tuple[Announcement, ...] = FULL) -> str:
    """Return what the address is offered now."""
    return offers.choose(address, 24 if candidates is FULL else 0, candidates).announcement.dialect.name


def refuse(offers: Offers, address: str = "a") -> str | None:
    """Let a client leave after what it is offered; return what is said to come next."""
    following = offers.left(offers.choose(address, 24, FULL), FULL)
    return None if following is None else following.dialect.name


def accept(offers: Offers, address: str = "a") -> None:
    """Let a client stay and end."""
    offer = offers.choose(address, 24, FULL)
    offers.stayed(offer)
    offers.ended(offer)


def test_candidates_are_tried_in_their_order_and_then_again(offers: Offers) -> None:
    names = [a.dialect.name for a in FULL]
    assert [name(offers)] == names[:1]
    assert [refuse(offers) for _ in names] == [*names[1:], names[0]]
    assert name(offers) == names[0]


def test_asking_twice_changes_nothing(offers: Offers) -> None:
    """Clients that are all offered the same at once, and leave, count once."""
    several = [offers.choose("a", 24, FULL) for _ in range(5)]
    assert {o.announcement for o in several} == {FULL[0]}
    said = [offers.left(o, FULL) for o in several]
    assert said == [FULL[1], None, None, None, None]
    assert name(offers) == FULL[1].dialect.name


def test_addresses_and_lengths_are_kept_apart(offers: Offers) -> None:
    refuse(offers, "a")
    assert name(offers, "a") == FULL[1].dialect.name
    assert name(offers, "b") == FULL[0].dialect.name
    assert name(offers, "a", EMPTY) == EMPTY[0].dialect.name


def test_the_last_that_worked_comes_first_the_one_before_second(offers: Offers) -> None:
    refuse(offers)
    refuse(offers)
    accept(offers)  # the third
    assert name(offers) == FULL[2].dialect.name
    assert refuse(offers) == FULL[0].dialect.name
    assert refuse(offers) == FULL[1].dialect.name
    accept(offers)  # the second
    assert name(offers) == FULL[1].dialect.name
    assert refuse(offers) == FULL[2].dialect.name


def test_a_live_session_fixes_the_offer(offers: Offers) -> None:
    refuse(offers)
    offer = offers.choose("a", 24, FULL)
    offers.stayed(offer)
    assert refuse(offers) is None
    assert refuse(offers) is None
    assert name(offers) == FULL[1].dialect.name
    offers.ended(offer)
    assert refuse(offers) == FULL[0].dialect.name


def test_an_offer_made_before_is_still_counted(offers: Offers) -> None:
    """Two clients are offered different candidates at the same time; both stay."""
    first = offers.choose("a", 24, FULL)
    refuse(offers)
    second = offers.choose("a", 24, FULL)
    offers.stayed(first)
    offers.stayed(second)
    offers.ended(first)
    assert name(offers) == second.announcement.dialect.name
    offers.ended(second)


def test_the_reason_is_told(offers: Offers) -> None:
    assert "first" in offers.choose("a", 24, FULL).reason
    refuse(offers)
    assert FULL[0].dialect.name in offers.choose("a", 24, FULL).reason
    accept(offers)
    assert "worked" in offers.choose("a", 24, FULL).reason
    offers.stayed(offers.choose("a", 24, FULL))
    assert "session" in offers.choose("a", 24, FULL).reason


def test_an_address_is_forgotten_after_its_time(offers: Offers, clock: Clock) -> None:
    refuse(offers)
    clock.now += EXPIRY_SECONDS - 1
    assert name(offers) == FULL[1].dialect.name
    clock.now += EXPIRY_SECONDS - 1  # seen in between
    assert name(offers) == FULL[1].dialect.name
    clock.now += EXPIRY_SECONDS + 1
    name(offers, "b")
    assert name(offers) == FULL[0].dialect.name


def test_its_own_return_after_its_time_finds_it_forgotten(offers: Offers, clock: Clock) -> None:
    refuse(offers)
    clock.now += EXPIRY_SECONDS + 1
    assert name(offers) == FULL[0].dialect.name


def test_a_live_session_is_not_forgotten(offers: Offers, clock: Clock) -> None:
    refuse(offers)
    offer = offers.choose("a", 24, FULL)
    offers.stayed(offer)
    clock.now += 10 * EXPIRY_SECONDS
    for i in range(MAX_ADDRESSES + 10):
        name(offers, f"other {i}")
    assert name(offers) == FULL[1].dialect.name
    offers.ended(offer)
    clock.now += EXPIRY_SECONDS + 1
    assert name(offers) == FULL[0].dialect.name


def test_the_number_of_addresses_is_bounded(offers: Offers) -> None:
    refuse(offers, "the first")
    for i in range(3 * MAX_ADDRESSES):
        refuse(offers, f"address {i}")
        if i == MAX_ADDRESSES // 2:
            name(offers, "the first")
        assert len(offers._clients) <= MAX_ADDRESSES
    assert len(offers._clients) == MAX_ADDRESSES
    assert name(offers, f"address {3 * MAX_ADDRESSES - 1}") == FULL[1].dialect.name
    assert name(offers, "the first") == FULL[0].dialect.name


def test_the_oldest_goes_first(offers: Offers) -> None:
    for i in range(MAX_ADDRESSES):
        refuse(offers, f"address {i}")
    name(offers, "address 0")  # seen again
    refuse(offers, "one more")
    assert name(offers, "address 0") == FULL[1].dialect.name
    assert name(offers, "address 2") == FULL[1].dialect.name
    assert name(offers, "address 1") == FULL[0].dialect.name


def test_what_did_not_fit_is_followed_by_a_later_minor_number(offers: Offers) -> None:
    by_name = {a.dialect.name: a for a in EMPTY}
    offers.left(offers.choose("a", 0, EMPTY), EMPTY)
    offer = offers.choose("a", 0, EMPTY)
    assert offer.announcement is by_name["3.0.0"]
    offers.stayed(offer)
    assert offers.misfit(offer, EMPTY) is by_name["3.5.0"]
    assert name(offers, "a", EMPTY) == "3.0.0"  # it still lives
    offers.ended(offer)
    assert name(offers, "a", EMPTY) == "3.5.0"
    assert offers.left(offers.choose("a", 0, EMPTY), EMPTY) is by_name["3.0.0"]
    assert name(offers, "a", EMPTY) == "3.0.0"
    again = offers.choose("a", 0, EMPTY)
    offers.stayed(again)
    offers.ended(again)
    assert name(offers, "a", EMPTY) == "3.0.0"
    other = offers.choose("b", 0, EMPTY)
    offers.stayed(other)
    assert offers.misfit(other, EMPTY) is None  # there is none later than 3.5.0
    offers.ended(other)
    assert name(offers, "b", EMPTY) == "3.5.0"


def test_threads_may_share_it(offers: Offers) -> None:
    def run(number: int) -> None:
        for i in range(300):
            address = f"address {(number + i) % 7}"
            offer = offers.choose(address, 24, FULL)
            if i % 3:
                offers.left(offer, FULL)
            else:
                offers.stayed(offer)
                offers.ended(offer)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(offers._clients) == 7
    assert all(c.live == 0 for c in offers._clients.values())
