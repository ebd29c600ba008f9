"""The real thing from the Hugging Face Hub, when it can be reached.

`load` gives what it could get and a `Notice` for the learner: how many rows were converted and
rejected, or why there are none and the local part is used alone. Nothing here needs the network
to be imported, and nothing raises because it is missing, except `fetch` and `rows`.

HF_ENDPOINT and HF_HUB_OFFLINE are honoured; a file that was fetched once is taken from the cache of
huggingface_hub, where its name is the hash of its content, which is compared at every use.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from course_utils.conversation import Conversation
from course_utils.curriculum.download import LARGEST, HubError, receive, within
from course_utils.curriculum.tasks import LETTERS, equation_holds, multiple_choice_question
from course_utils.manifests import content_is, sha256
from course_utils.sources import Rejection, Report, convert

INSTALL = 'pip install -e ".[hub]" in the course folder'
DEADLINE = 600  # seconds for a file, whatever happens


class Notice(str):
    """What a learner should be told. Callers print it."""


@dataclass(frozen=True)
class HubSource:
    """One parquet file of a data set, at one commit, and how its records become conversations.

    columns: the fields to read
    convert: (record, id) -> conversations or rejections, as `course_utils.sources.convert` gives
    number:  how many rows to take at most, spread evenly over the file
    """

    name: str
    repo: str
    revision: str
    file: str
    licence: str
    columns: tuple[str, ...]
    convert: Callable[[Mapping, str], list[Conversation | Rejection]]
    number: int = 2000

    def __str__(self):
        return f"{self.repo}/{self.file} at {self.revision[:7]}"


# --- converters ----------------------------------------------------------------------------------


def smoltalk(record: Mapping, id: str) -> list[Conversation | Rejection]:
    """SmolTalk: a list of messages."""
    return convert(record, "messages", id=id)


def mmlu(record: Mapping, id: str) -> list[Conversation | Rejection]:
    """MMLU: a question, four choices and the index of the right one, as a letter to answer with."""
    question, choices, answer = (record.get(key) for key in ("question", "choices", "answer"))

    def reject(reason: str, place: str, detail: str) -> list[Rejection]:
        return [Rejection(id, reason, place, detail, record)]

    if not isinstance(question, str) or not question.strip():
        return reject("empty text", "question", "no question")
    texts = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
    if not texts or not 2 <= len(choices) <= len(LETTERS):
        return reject("wrong type", "choices", f"not 2 to {len(LETTERS)} texts")
    if len(set(choices)) < len(choices):
        return reject("wrong type", "choices", "two choices are the same")
    if type(answer) is not int or not 0 <= answer < len(choices):
        return reject("wrong type", "answer", f"{answer!r} is no index of {len(choices)} choices")
    asked = multiple_choice_question(question.strip(), [choice.strip() for choice in choices])
    pair = {"prompt": asked, "completion": LETTERS[answer], "subject": record.get("subject")}
    return convert(pair, "prompt-completion", id=id)


def gsm8k(record: Mapping, id: str) -> list[Conversation | Rejection]:
    """GSM8K: a worked solution, every marked calculation of which must hold."""
    found = convert(record, "worked-math", id=id)
    for chat in found:
        for _, step in chat.meta.get("calculations", []) if isinstance(chat, Conversation) else ():
            left, _, right = step.rpartition("=")
            if not equation_holds(left, right):
                reason = "broken worked solution"
                return [Rejection(id, reason, "answer", f"{step} does not hold", record)]
    return found


SOURCES = {
    source.name: source
    for source in (
        HubSource(
            "smoltalk",
            "HuggingFaceTB/smoltalk",
            "5feaf2fd3ffca7c237fc38d1861bc30365d48ffa",
            "data/everyday-conversations/train-00000-of-00001.parquet",
            "Apache-2.0",
            ("messages",),
            smoltalk,
        ),
        HubSource(
            "mmlu",
            "cais/mmlu",
            "c30699e8356da336a370243923dbaf21066bb9fe",
            # The part that is made for training; to train on the test would be to cheat.
            "all/auxiliary_train-00000-of-00001.parquet",
            "MIT",
            ("question", "subject", "choices", "answer"),
            mmlu,
        ),
        HubSource(
            "gsm8k",
            "openai/gsm8k",
            "e53f048856ff4f594e959d75785d2c2d37b678ee",
            "main/train-00000-of-00001.parquet",
            "MIT",
            ("question", "answer"),
            gsm8k,
        ),
    )
}


# --- loading -------------------------------------------------------------------------------------


def load(source: HubSource, **how) -> tuple[list[Conversation], Notice]:
    """(conversations, what to tell the learner). Never raises for want of a file or a network.

    `how` goes to `fetch`: `timeout`, `deadline`, `cache_dir`.
    """
    report, found = Report(), []
    try:
        for position, record in rows(source, **how):
            results = source.convert(record, f"{source.name}-{position}")
            report.add(source.name, results)
            found += [result for result in results if isinstance(result, Conversation)]
    except HubError as error:
        return [], Notice(f"{error} Only the local part is used.")
    return found, Notice(f"From the Hub, {source}: {report}")


def rows(source: HubSource, *, batch_size: int = 256, **how) -> Iterator[tuple[int, dict]]:
    """(row number, record) of `source.number` rows at most, spread evenly over the file.

    Read in batches, so that memory holds `batch_size` rows. Raises `HubError`.
    """
    path = fetch(source, **how)
    pyarrow = _installed("pyarrow")
    parquet = _installed("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            if missing := sorted(set(source.columns) - set(file.schema_arrow.names)):
                raise HubError(
                    "wrong file",
                    f"{source}: no column {', '.join(missing)}, "
                    f"only {', '.join(file.schema_arrow.names)}.",
                )
            total = file.metadata.num_rows
            number = min(source.number, total)
            wanted, position = {n * total // number for n in range(number)}, 0
            for batch in file.iter_batches(batch_size, columns=list(source.columns)):
                for record in batch.to_pylist():
                    if position in wanted:
                        yield position, record
                    position += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise HubError(
            "wrong file",
            f"{source}: no parquet file that can be read ({_first_line(error)}). "
            f"Delete {path} to fetch it again.",
        ) from None


def fetch(
    source: HubSource,
    *,
    timeout: float | None = None,
    deadline: float = DEADLINE,
    cache_dir: str | Path | None = None,
) -> Path:
    """The file on this machine: from the cache, or else from the Hub. Raises `HubError`.

    timeout:  seconds to wait for the Hub's answer (HF_HUB_ETAG_TIMEOUT, or 10)
    deadline: seconds for everything

    Its content is what the Hub announced when it was fetched, by hash: the SHA-256 or git's id. A
    server that announces neither is believed once, and held to it.
    """
    hub = _installed("huggingface_hub")
    parquet = _installed("pyarrow.parquet")
    place = {
        "repo_id": source.repo,
        "filename": source.file,
        "repo_type": "dataset",
        "revision": source.revision,
    }
    cached = hub.try_to_load_from_cache(**place, cache_dir=cache_dir)
    if isinstance(cached, str):
        # In the cache a name in the data set leads to a file that is named after its content.
        same = content_is(Path(cached), Path(cached).resolve().name)
        if same:
            return Path(cached)
        if same is False:
            raise HubError(
                "wrong file",
                f"{source}: the cached file has changed since it was fetched. Delete {cached} to "
                "fetch it again.",
            )
    if _offline(hub):
        raise HubError(
            "offline",
            f"{source} is not in the cache, and HF_HUB_OFFLINE is set. Unset it to fetch the file.",
        )
    endpoint = (os.environ.get("HF_ENDPOINT") or hub.constants.ENDPOINT).rstrip("/")
    url = hub.hf_hub_url(**place, endpoint=endpoint)
    timeout = timeout or hub.constants.HF_HUB_ETAG_TIMEOUT
    storage = Path(cache_dir or hub.constants.HF_HUB_CACHE)
    storage /= hub.file_download.repo_folder_name(repo_id=source.repo, repo_type="dataset")
    (storage / "blobs").mkdir(parents=True, exist_ok=True)
    number, part = tempfile.mkstemp(suffix=".incomplete", dir=storage / "blobs")
    os.close(number)
    try:
        announced = within(deadline, lambda stop: _download(source, url, timeout, part, stop))
        _check_arrived(source, Path(part), announced, parquet)
        return _keep(source, Path(part), storage, announced.commit_hash)
    except HubError:
        raise
    except TimeoutError:
        raise HubError(
            "time-out", f"{source}: not here after {deadline:g} seconds. Try again."
        ) from None
    except Exception as error:  # whatever the layers below raise
        raise _hub_error(error, source, endpoint) from None
    finally:
        Path(part).unlink(missing_ok=True)


def _download(source: HubSource, url: str, timeout: float, part: str, stop):
    """Write what the Hub gives for `url` to the file `part`; returns what it announced of it."""
    hub = _installed("huggingface_hub")
    # Asked for once: the Hub's own download would try for minutes to reach a dead Hub.
    announced = hub.get_hf_file_metadata(url, timeout=timeout)
    commit, size = announced.commit_hash or "", announced.size
    if not re.fullmatch("[0-9a-f]{40}", commit) or not announced.etag or size is None:
        raise HubError(
            "no answer", f"{source}: {url} does not answer as the Hub does. Is it a log-in page?"
        )
    if not 0 <= size <= LARGEST:
        raise HubError("wrong file", f"{source}: announced with {size:,} bytes, which is too many.")
    with open(part, "wb") as file, hub.utils.tqdm(total=size, unit="B", unit_scale=True) as bar:
        receive(
            hub.get_session(),
            url,
            file,
            size,
            headers=hub.utils.build_hf_headers(),
            timeout=hub.constants.HF_HUB_DOWNLOAD_TIMEOUT,
            name=str(source),
            stop=stop,
            on_bytes=bar.update,
        )
    return announced


def _check_arrived(source: HubSource, part: Path, announced, parquet) -> None:
    """Raise `HubError` unless a file is what was announced, and parquet: nothing else is kept."""
    if content_is(part, announced.etag) is False:
        raise HubError(
            "wrong file",
            f"{source}: what arrived is not what the Hub announced, {announced.etag}. Try again.",
        )
    try:
        parquet.ParquetFile(part).close()
    except Exception as error:  # a page, half a file, or made to break the reader
        raise HubError(
            "wrong file",
            f"{source}: no parquet file that can be read ({_first_line(error)}).",
        ) from None


def _keep(source: HubSource, part: Path, storage: Path, commit: str) -> Path:
    """Put a file into the Hub's cache as its own client does, under the hash of its content."""
    blob = storage / "blobs" / sha256(part)
    part.chmod(0o644)
    part.replace(blob)
    if commit != source.revision:
        reference = storage / "refs" / source.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
    path = storage / "snapshots" / commit / source.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=storage) as scratch:
        link = Path(scratch) / "link"
        link.symlink_to(os.path.relpath(blob, path.parent))
        link.replace(path)
    return path


def _offline(hub) -> bool:
    said = os.environ.get("HF_HUB_OFFLINE", "")
    return hub.constants.HF_HUB_OFFLINE or said.upper() in ("1", "ON", "YES", "TRUE")


def _hub_error(error: Exception, source: HubSource, endpoint: str) -> HubError:
    """What went wrong, in one sentence for a learner.

    The layer that carries the bytes is httpx in one release of huggingface_hub and httpx2 in the
    next, so its errors are told by their names.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # "not in the cache either" says nothing of the reason
    names = {kind.__name__ for found in _with_causes(error) for kind in type(found).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or (
        status in (401, 403) and not isinstance(error, errors.RepositoryNotFoundError)
    ):
        return HubError(
            "no permission",
            f"{source}: the Hub refuses access ({status}). Accept the data set's terms on its "
            "page and log in with: hf auth login",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            "not found",
            f"{source}: no such data set at {endpoint}, or a private one. For a private one log "
            "in with: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError | errors.EntryNotFoundError):
        return HubError("not found", f"{source}: the data set has no such file at this revision.")
    if "TimeoutException" in names or "TimeoutError" in names:
        return HubError("time-out", f"{source}: {endpoint} did not answer in time. Try again.")
    if "RemoteProtocolError" in names or "Consistency check failed" in str(error):
        return HubError("half a file", f"{source}: the file arrived incomplete. Try again.")
    if "NetworkError" in names or "ProxyError" in names:
        return HubError("no network", f"{source}: {endpoint} cannot be reached.")
    return HubError("no answer", f"{source}: {endpoint} did not give it ({_first_line(error)}).")


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _installed(package: str):
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError:
        raise HubError(
            "not installed", f"{package} is not installed, which the Hub's files need: {INSTALL}."
        ) from None
