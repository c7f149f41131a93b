"""Fetch a model from a hub by ``user/repo[:quant]``, through `huggingface_hub`.

That library's settings hold: its cache (`HF_HOME`, `HF_HUB_CACHE`), `HF_ENDPOINT`, `HF_HUB_OFFLINE`, and its tokens
(`HF_TOKEN` or ``hf auth login``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ggml_rpc.errors import ModelError
from ggml_rpc.extras import require

Progress = Callable[[str, int, int | None], None]
"""Called with a file's name, the bytes of it that are there, and its size where it is known."""

_SPEC = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<quant>[\w.-]+))?", re.ASCII)
_SPLIT = re.compile(r"(?P<prefix>.+)-(?P<no>[0-9]{5})-of-(?P<count>[0-9]{5})")
_QUANT = re.compile(r"[-.]([A-Z0-9_]+)$", re.IGNORECASE)
# What stock programs try when no quantisation is named; then the first file.
_PREFERRED = ("Q4_K_M", "Q8_0")
# Words in the names of files that are no models: projectors, calibration data, draft heads.
_NOT_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_MOST_LISTED = 20


def fetch(spec: str, *, progress: Progress | None = None) -> Path:
    """Return the path of a model's first file, having fetched what is not in the cache.

    A connection that breaks is taken up again where it broke; files that are complete, such as the first parts of a
    split model, are not fetched again. Without a network the cache alone is searched.

    Parameters
    ----------
    spec : str
        ``user/repo`` or ``user/repo:quant``. The quantisation is looked for in the files' names, upper or lower case;
        without one Q4_K_M is taken, else Q8_0, else the first GGUF file. All parts of a split model are fetched.
    progress : callable, optional
        Is told how far a file is; not called for files in the cache.

    Raises
    ------
    ModelError
        If the name is no such name, the repository does not exist or needs a token, has no file of that quantisation,
        or the hub cannot be reached and the cache lacks the model.
    RpcError
        If `huggingface_hub` is not installed.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ModelError(f"{spec!r} is no model's name: write USER/REPO or USER/REPO:QUANT")
    repo, quant = match["repo"], match["quant"]
    hub = _Hub(repo)
    listed = hub.listed()
    names, where = (hub.cached(), "the cache") if listed is None else (listed, hub.endpoint)
    wanted = _chosen(names, quant)
    reason = f" ({hub.trouble})" if hub.trouble else ""
    if not wanted:
        raise ModelError(_nothing(names, repo, quant, where) + reason)
    absent = [name for name in wanted if name not in names]
    if absent:
        raise ModelError(
            f"{repo} lacks {len(absent)} of {len(wanted)} parts in {where}, the first is {absent[0]}{reason}"
        )
    paths = [hub.path(name, progress) for name in wanted]
    if len({path.parent for path in paths}) > 1:
        raise ModelError(f"{repo} changed while it was fetched; run the command again")
    return paths[0]


class _Hub:
    """One repository of a hub, and the cache beside it."""

    def __init__(self, repo: str) -> None:
        self._library = _library("huggingface_hub")
        self._errors = _library("huggingface_hub.errors")
        self._repo = repo
        constants = _library("huggingface_hub.constants")
        self.endpoint = str(constants.ENDPOINT)
        self._cache = constants.HF_HUB_CACHE
        self.trouble = ""  # why the hub could not be asked

    def listed(self) -> list[str] | None:
        """Return the names of the repository's files, or None if the hub cannot be reached."""
        errors = self._errors
        try:
            files = self._library.HfApi(endpoint=self.endpoint).model_info(self._repo).siblings
            return [str(file.rfilename) for file in files or ()]
        except errors.HfHubHTTPError as error:
            self._refuse(error)
            self.trouble = self._status(error)
        except errors.OfflineModeIsEnabled:
            self.trouble = "HF_HUB_OFFLINE is set"
        except (errors.HTTPError, OSError) as error:
            self.trouble = f"{self.endpoint} cannot be reached: {_line(error)}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{self.endpoint} does not answer like a model hub ({_line(error)}); check HF_ENDPOINT"
            ) from error
        return None

    def cached(self) -> list[str]:
        """Return the names of the files that the cache has of the repository's last known state."""
        try:
            repos = self._library.scan_cache_dir(self._cache).repos
        except self._errors.CacheNotFound:
            return []
        revisions = [r for c in repos if (c.repo_id, c.repo_type) == (self._repo, "model") for r in c.revisions]
        for revision in revisions:
            if "main" in revision.refs:
                return [f.file_path.relative_to(revision.snapshot_path).as_posix() for f in revision.files]
        return []

    def path(self, name: str, progress: Progress | None) -> Path:
        """Return where a file lies in the cache, having fetched it if need be."""
        errors = self._errors
        bar = _bar(_library("huggingface_hub.utils").tqdm, name, progress)
        try:
            found = self._library.hf_hub_download(
                self._repo,
                name,
                endpoint=self.endpoint,
                cache_dir=self._cache,
                local_files_only=bool(self.trouble),
                tqdm_class=bar,
            )
            return Path(found)
        except errors.LocalEntryNotFoundError as error:
            # The library gives up on a file that it has no size of; what the hub answered is the cause.
            trouble = self.trouble or f"{self.endpoint} cannot be reached"
            if isinstance(error.__cause__, errors.HfHubHTTPError):
                self._refuse(error.__cause__)
                trouble = self._status(error.__cause__)
            raise ModelError(f"{self._repo}: {name} is not in the cache, and {trouble}") from error
        except errors.HfHubHTTPError as error:
            self._refuse(error)
            raise ModelError(
                f"{self._repo}: {name} cannot be fetched: {self._status(error)}; try again later"
            ) from error
        except errors.HTTPError as error:
            raise ModelError(
                f"{self._repo}: fetching {name} broke off: {_line(error)}; run the command again"
            ) from error
        except (OSError, ValueError) as error:
            raise ModelError(f"{self._repo}: {name} cannot be fetched: {_line(error)}") from error

    def _status(self, error: Any) -> str:
        return f"{self.endpoint} answered with status {error.response.status_code}"

    def _refuse(self, error: Any) -> None:
        """Raise for an answer that no second attempt changes."""
        errors, repo, status = self._errors, self._repo, error.response.status_code
        remedy = "set HF_TOKEN or run `hf auth login`"
        if isinstance(error, errors.GatedRepoError):
            raise ModelError(f"{repo} is gated: ask for access on {self.endpoint}/{repo}, then {remedy}") from error
        gone = status == 404 and not isinstance(error, errors.EntryNotFoundError)
        if isinstance(error, errors.RepositoryNotFoundError) or status == 401 or gone:
            raise ModelError(
                f"{self.endpoint} has no repository {repo}, or it is private: check the name;"
                f" for a private one {remedy}"
            ) from error
        if status == 403:
            raise ModelError(f"{self.endpoint} does not let this token read {repo}: {remedy}") from error


def _library(name: str) -> ModuleType:
    return require(name, "fetching models")


def _bar(base: Any, name: str, progress: Progress | None) -> Any:
    """Return a class of progress bars for the library, that draws nothing and tells `progress`."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **{**kwargs, "disable": True})

    def update(self: Any, n: float | None = 1) -> None:
        self.n += n or 0
        if progress is not None:
            progress(name, int(self.n), None if self.total is None else int(self.total))

    def nothing(self: Any, *_: object, **__: object) -> None:
        """Take what a second bar, of bytes on the wire, would be told."""

    members = {
        "__init__": init,
        "update": update,
        "update_transfer": nothing,
        "set_transfer_postfix_str": nothing,
    }
    return type("Bar", (base,), members)


def _chosen(names: Sequence[str], quant: str | None) -> list[str]:
    """Return the files of the model to fetch, first part first; none if there is no such model."""
    models = sorted(name for name in names if _is_model(name) and _part(name)[1] == 1)
    for word in (quant,) if quant else _PREFERRED:
        pattern = re.compile(re.escape(word) + "[.-]", re.IGNORECASE)
        found = [name for name in models if pattern.search(name)]
        if found:
            return _all_parts(found[0])
    return [] if quant or not models else _all_parts(models[0])


def _is_model(name: str) -> bool:
    # A name comes from the network and becomes a path.
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        return False
    return name.endswith(".gguf") and not any(word in name.rsplit("/", 1)[-1] for word in _NOT_MODELS)


def _part(name: str) -> tuple[str, int, int]:
    """Return what a file's name says: its beginning, which part it is, of how many."""
    stem = name.removesuffix(".gguf")
    match = _SPLIT.fullmatch(stem)
    return (match["prefix"], int(match["no"]), int(match["count"])) if match else (stem, 1, 1)


def _all_parts(first: str) -> list[str]:
    prefix, _, count = _part(first)
    if count <= 1:
        return [first]
    return [f"{prefix}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]  # of at most 99,999


def _nothing(names: Sequence[str], repo: str, quant: str | None, where: str) -> str:
    """Return the error for a repository without the model asked for."""
    models = [name for name in names if _is_model(name)]
    if not models:
        return f"{repo} has no GGUF model in {where}"
    quants = {m[1].upper() if (m := _QUANT.search(_part(name)[0])) else name for name in models}
    shown = sorted(quants)[:_MOST_LISTED]
    more = f" and {len(quants) - len(shown)} more" if len(quants) > len(shown) else ""
    return f"{repo} has no {quant} in {where}; it has {', '.join(shown)}{more}"


def _line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
