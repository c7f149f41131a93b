"""Which device takes which weights."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggml_rpc.errors import PlacementError
from ggml_rpc.llm.placement import (
    Demand,
    Part,
    Placement,
    Room,
    Wishes,
    format_bytes,
    parse_overrides,
    parse_split,
    place,
    refill,
    table,
    uses,
)

MIB = 1 << 20
HOST = Room("CPU", 100_000 * MIB)


def model(
    n_layer: int, *, layer: int = 10, cache: int = 2, output: int = 10, compute: int = 0, last: int = 0
) -> Demand:
    """Return a model whose layers are alike; sizes in MiB."""
    layers = [
        Part({f"blk.{i}.attn.weight": layer * MIB // 2, f"blk.{i}.ffn.weight": layer * MIB // 2}, cache * MIB)
        for i in range(n_layer)
    ]
    head = Part({"output.weight": output * MIB})
    return Demand(layers, head, {"token_embd.weight": output * MIB}, compute * MIB, last * MIB)


def rooms(*free: int) -> list[Room]:
    """Return remote devices with so many MiB."""
    return [Room(f"RPC{i}", n * MIB) for i, n in enumerate(free)]


def owners(placement: Placement) -> list[str]:
    """Return who has each layer and the output."""
    return [*placement.layers, placement.output]


# ---- Given shares ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_layer", "split", "counts"),
    [
        # Of n + 1 parts the i-th goes to the first device whose cumulative share is above i / (n + 1).
        (3, [1, 1], [2, 2]),
        (4, [1, 1], [3, 2]),
        (3, [3, 1], [3, 1]),
        (7, [3, 1], [6, 2]),
        (8, [3, 1], [7, 2]),
        (31, [1, 2, 1], [8, 16, 8]),
        (5, [0, 1], [0, 6]),
        (5, [1, 0, 1], [3, 0, 3]),
        (5, [1], [6, 0]),  # a device without an entry gets nothing
        (1, [1, 1000], [1, 1]),  # the first part is at 0, which no positive share excludes
        (17, [0.7, 0.3], [13, 5]),
    ],
)
def test_shares_are_llama_cpps(n_layer: int, split: list[float], counts: list[int]) -> None:
    devices = rooms(*[10_000] * max(2, len(split)))
    placement = place(model(n_layer), devices, HOST, Wishes(tensor_split=split))
    found = Counter(owners(placement))
    assert [found[room.name] for room in devices] == counts
    assert owners(placement) == sorted(owners(placement))


@pytest.mark.parametrize(("ngl", "on_host"), [(0, 9), (1, 8), (4, 5), (8, 1), (9, 0), (99, 0), (-1, 0), (None, 0)])
@pytest.mark.parametrize("split", [None, [1, 1]])
def test_the_last_layers_go_to_the_devices(ngl: int | None, on_host: int, split: list[float] | None) -> None:
    placement = place(model(8), rooms(10_000, 10_000), HOST, Wishes(ngl, split))
    assert owners(placement)[:on_host] == ["CPU"] * on_host
    assert "CPU" not in owners(placement)[on_host:]


def test_host_may_be_among_the_devices() -> None:
    placement = place(model(3), [*rooms(1000), HOST], HOST, Wishes(tensor_split=[1, 1]))
    assert owners(placement) == ["RPC0", "RPC0", "CPU", "CPU"]


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ([1, 1, 1], "1,1,1 has 3 entries, but the devices that take layers are 2: RPC0, RPC1"),
        ([0, 0], "0,0 gives nothing to any of RPC0, RPC1"),
        ([1, -1], "no share: -1"),
        ([math.nan, 1], "no share: nan"),
        ([1, math.inf], "no share: inf"),
        ([], "gives nothing"),
    ],
)
def test_wrong_shares(split: list[float], said: str) -> None:
    with pytest.raises(PlacementError, match=said) as caught:
        place(model(3), rooms(1000, 1000), HOST, Wishes(tensor_split=split))
    assert "\n" not in str(caught.value)


def test_split_is_read_from_text() -> None:
    assert parse_split("3,1") == [3, 1]
    assert parse_split("0.5/0.5") == [0.5, 0.5]
    for text in ("", "a,b", "1,,2", "1;2"):
        with pytest.raises(PlacementError, match="no list of numbers"):
            parse_split(text)


# ---- By memory -------------------------------------------------------------------------------------------------------


def test_memory_decides_without_shares() -> None:
    # 16 parts of 12 MiB (the output of 10): 3/4 of the room is on the first device.
    placement = place(model(15), rooms(3000, 1000), HOST)
    assert Counter(owners(placement)) == {"RPC0": 12, "RPC1": 4}


def test_compute_memory_comes_off_first() -> None:
    # Of 110 and 110 MiB, 100 are left for layers on each; with the last part's 90 only 10 on the second one.
    even = place(model(3, compute=10), rooms(110, 110), HOST)
    assert Counter(owners(even)) == {"RPC0": 2, "RPC1": 2}
    uneven = place(model(4, compute=10, last=80), rooms(110, 110), HOST)
    assert Counter(owners(uneven)) == {"RPC0": 4, "RPC1": 1}


def test_a_large_output_does_not_drag_layers_along() -> None:
    # By shares alone the second device would be given more than it has.
    placement = place(model(10, output=95), rooms(125, 100), HOST)
    assert owners(placement) == ["RPC0"] * 10 + ["RPC1"]


def test_cache_counts() -> None:
    placement = place(model(9, layer=2, cache=38, output=1), rooms(205, 205), HOST)
    assert Counter(placement.layers) == {"RPC0": 5, "RPC1": 4}


def test_what_does_not_fit_is_refused_with_a_table() -> None:
    demand = model(15, compute=5, last=3)
    with pytest.raises(PlacementError) as caught:
        place(demand, rooms(60, 60), HOST)
    first, *lines = str(caught.value).splitlines()
    assert "does not fit" in first
    assert "RPC0 lacks" in first
    assert lines == caught.value.table.splitlines()
    assert lines[0].split() == ["device", "free", "weights", "KV", "cache", "compute", "sum"]
    cells = {line.split()[0]: line for line in lines[1:]}
    assert set(cells) == {"RPC0", "RPC1"}
    assert "60.0 MiB" in cells["RPC0"]
    assert "too much" in cells["RPC0"]


def test_table_sums() -> None:
    demand = model(3, compute=5, last=3)
    placement = place(demand, rooms(100, 100), HOST, Wishes(tensor_split=[1, 1]))
    first, second, host = uses(demand, placement, [*rooms(100, 100), HOST])
    assert (first.weights, first.cache, first.compute) == (20 * MIB, 4 * MIB, 5 * MIB)
    assert (second.weights, second.cache, second.compute) == (20 * MIB, 2 * MIB, 8 * MIB)
    assert host.total == 0
    assert "30.0 MiB  fits" in table([second])


@given(
    free=st.lists(st.integers(0, 400), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    output=st.integers(1, 100),
)
def test_consecutive_layers_that_can_fit_do(free: list[int], sizes: list[int], output: int) -> None:
    demand = Demand([Part({f"blk.{i}": n}) for i, n in enumerate(sizes)], Part({"output.weight": output}))
    devices = [Room(f"RPC{i}", n) for i, n in enumerate(free)]
    possible = fits_in_order([*sizes, output], free)
    try:
        placement = place(demand, devices, HOST)
    except PlacementError:
        assert not possible
    else:
        assert possible
        order = [room.name for room in devices]
        found = [order.index(name) for name in owners(placement)]
        assert found == sorted(found)
        assert not any(use.short for use in uses(demand, placement, devices))


def fits_in_order(sizes: list[int], free: list[int]) -> bool:
    """Tell whether filling each device as far as it goes takes everything: no other way in order takes more."""
    at = 0
    for room in free:
        left = room
        while at < len(sizes) and sizes[at] <= left:
            left -= sizes[at]
            at += 1
    return at == len(sizes)


# ---- By name ---------------------------------------------------------------------------------------------------------


def test_first_override_that_matches_counts() -> None:
    wishes = Wishes(tensor_split=[1, 0], overrides=[(r"blk\.1\.ffn", "RPC1"), (r"ffn", "CPU")])
    placement = place(model(3), rooms(1000, 1000), HOST, wishes)
    assert placement.device_of("blk.0.ffn.weight", 0) == "CPU"
    assert placement.device_of("blk.1.ffn.weight", 1) == "RPC1"
    assert placement.device_of("blk.1.attn.weight", 1) == "RPC0"
    assert placement.device_of("output.weight", 3) == "RPC0"
    assert placement.devices == ["RPC0", "CPU", "RPC1"]


def test_overridden_weights_count_where_they_are() -> None:
    demand = model(3)
    placement = place(demand, rooms(40, 40), HOST, Wishes(overrides=[("attn", "RPC1")]))
    assert {use.room.name: use.weights // MIB for use in uses(demand, placement, rooms(40, 40))}["RPC1"] >= 15
    with pytest.raises(PlacementError, match="RPC1 lacks"):
        place(demand, rooms(1000, 10), HOST, Wishes(overrides=[("attn", "RPC1")]))


def test_embeddings_stay_in_the_file_unless_a_device_is_named() -> None:
    demand = model(3)
    assert not place(demand, rooms(1000), HOST, Wishes(overrides=[("token_embd", "CPU")])).weights
    placed = place(demand, rooms(1000), HOST, Wishes(overrides=[("token_embd", "RPC0")]))
    assert placed.weights == {"token_embd.weight": "RPC0"}
    assert uses(demand, placed, rooms(1000))[0].weights == 50 * MIB


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (("attn", "RPC7"), "names no device of this run: RPC0, CPU"),
        (("(", "CPU"), "is no regular expression"),
        (("nothing", "CPU"), "matches no weight"),
    ],
)
def test_wrong_overrides(override: tuple[str, str], said: str) -> None:
    with pytest.raises(PlacementError, match=said) as caught:
        place(model(3), rooms(1000), HOST, Wishes(overrides=[override]))
    assert "\n" not in str(caught.value)


def test_an_override_behind_one_that_takes_all_is_no_mistake() -> None:
    placement = place(model(2), rooms(1000), HOST, Wishes(overrides=[("ffn", "CPU"), (r"blk\.0\.ffn", "RPC0")]))
    assert placement.weights["blk.0.ffn.weight"] == "CPU"


def test_overrides_are_read_from_text() -> None:
    assert parse_overrides("a=CPU,b.*=RPC0") == [("a", "CPU"), ("b.*", "RPC0")]
    assert parse_overrides(["x{1,2}=CPU", "a=b=RPC1"]) == [("x{1,2}", "CPU"), ("a=b", "RPC1")]
    for entry in ("CPU", "=CPU", "a=", ""):
        with pytest.raises(PlacementError, match="REGEX=DEVICE"):
            parse_overrides([entry])


# ---- After a loss ----------------------------------------------------------------------------------------------------


def test_lost_layers_go_to_their_neighbours() -> None:
    old = Placement(("RPC0", "RPC0", "RPC1", "RPC1", "RPC2", "RPC2"), "RPC2")
    left = [Room("RPC0", 1000 * MIB), Room("RPC2", 1000 * MIB), HOST]
    new = refill(model(6), old, left, ["RPC1"])
    assert owners(new) == ["RPC0", "RPC0", "RPC0", "RPC2", "RPC2", "RPC2", "RPC2"]


def test_lost_output_goes_to_the_device_before() -> None:
    old = Placement(("RPC0", "RPC0"), "RPC1")
    assert owners(refill(model(2), old, [Room("RPC0", 1000 * MIB), HOST], ["RPC1"])) == ["RPC0"] * 3


def test_lost_layers_go_on_where_there_is_room() -> None:
    old = Placement(("RPC0",) * 2 + ("RPC1",) * 4 + ("RPC2",) * 2, "RPC2")
    # The neighbours have room for one layer each beside their own, the fourth device for two.
    left = [Room("RPC0", 40 * MIB), Room("RPC2", 50 * MIB), Room("RPC3", 30 * MIB), Room("CPU", 0)]
    new = refill(model(8), old, left, ["RPC1"])
    assert owners(new) == ["RPC0"] * 3 + ["RPC3"] * 2 + ["RPC2"] * 4


def test_all_servers_lost() -> None:
    old = Placement(("RPC0", "RPC1"), "RPC1")
    assert owners(refill(model(2), old, [HOST], ["RPC0", "RPC1"])) == ["CPU"] * 3


def test_weights_placed_by_name_on_a_lost_device_follow_their_layer() -> None:
    old = Placement(("RPC0", "RPC0"), "RPC0", {"blk.0.ffn.weight": "RPC1", "token_embd.weight": "RPC1"})
    new = refill(model(2), old, [Room("RPC0", 1000 * MIB), HOST], ["RPC1"])
    assert new == Placement(("RPC0", "RPC0"), "RPC0", {})


def test_loss_that_cannot_be_made_good() -> None:
    old = Placement(("RPC0", "RPC0", "RPC1", "RPC1"), "RPC1")
    with pytest.raises(PlacementError, match="RPC0 lacks") as caught:
        refill(model(4), old, [Room("RPC0", 40 * MIB), Room("CPU", 5 * MIB)], ["RPC1"])
    assert "RPC0" in caught.value.table


@given(
    owner=st.lists(st.integers(0, 3), min_size=1, max_size=10).map(sorted),
    free=st.lists(st.integers(0, 300), min_size=4, max_size=4),
    lost=st.sets(st.integers(0, 3), min_size=1),
)
def test_what_is_left_stays_and_what_is_lost_fits(owner: list[int], free: list[int], lost: set[int]) -> None:
    demand = Demand([Part({f"blk.{i}": 20}) for i in range(len(owner) - 1)], Part({"output.weight": 30}))
    names = [f"RPC{i}" for i in owner]
    left = [Room(f"RPC{i}", n) for i, n in enumerate(free) if i not in lost] + [Room("CPU", 100)]
    gone = {f"RPC{i}" for i in lost}
    try:
        placement = refill(demand, Placement(tuple(names[:-1]), names[-1]), left, gone)
    except PlacementError:
        # Not even all that is free would have done, or a gap lies where too little of it is.
        assert sum(room.free for room in left) < sum(20 for _ in demand.layers) + 30 or len(left) > 1
        return
    assert not gone & set(owners(placement))
    assert all(new == old for old, new in zip(names, owners(placement), strict=True) if old not in gone)
    assert not any(use.short for use in uses(demand, placement, left))


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * MIB, "1.5 GiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_for_people(n: int, text: str) -> None:
    assert format_bytes(n) == text
