"""The real thing from the Hugging Face Hub, when it can be reached.

`load` gives what it could get and a `Notice` for the learner: how many rows were converted and
rejected, or why there are none and the local part is used alone. Nothing here needs the network
to be imported, and nothing raises because it is missing, except `fetch` and `rows`.

HF_ENDPOINT and HF_HUB_OFFLINE are honoured; a file that was fetched once is taken from the cache.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from course_utils.conversation import Conversation
from course_utils.curriculum.tasks import LETTERS, equation_holds, multiple_choice_question
from course_utils.sources import Rejection, Report, convert

INSTALL = 'pip install -e ".[hub]" in the course folder'
# Bytes received per byte of a file before a download that breaks again and again is given up.
PATIENCE = 3


class Notice(str):
    """What a learner should be told. Callers print it."""


class HubError(RuntimeError):
    """A file cannot be had, or is not what it should be. `kind` is one of `KINDS`."""

    KINDS = (
        "not installed",
        "offline",
        "no network",
        "time-out",
        "not found",
        "no permission",
        "half a file",
        "wrong file",
        "no answer",
    )

    def __init__(self, kind: str, message: str):
        assert kind in self.KINDS, kind
        super().__init__(message)
        self.kind = kind


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

    `how` goes to `fetch`: `timeout`, `cache_dir`.
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
    source: HubSource, *, timeout: float | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The file on this machine: from the cache, or else from the Hub. Raises `HubError`.

    timeout: seconds to wait for the Hub's answer (HF_HUB_ETAG_TIMEOUT, or 10)
    """
    hub = _installed("huggingface_hub")
    place = {
        "repo_id": source.repo,
        "filename": source.file,
        "repo_type": "dataset",
        "revision": source.revision,
    }
    cached = hub.try_to_load_from_cache(**place, cache_dir=cache_dir)
    if isinstance(cached, str):
        return Path(cached)
    if _offline(hub):
        raise HubError(
            "offline",
            f"{source} is not in the cache, and HF_HUB_OFFLINE is set. Unset it to fetch the file.",
        )
    endpoint = (os.environ.get("HF_ENDPOINT") or hub.constants.ENDPOINT).rstrip("/")
    timeout = timeout or hub.constants.HF_HUB_ETAG_TIMEOUT
    url = hub.hf_hub_url(**place, endpoint=endpoint)
    try:
        # Asked for first and once: the download itself would try for minutes to reach a dead Hub.
        hub.get_hf_file_metadata(url, timeout=timeout)
        path = hub.hf_hub_download(
            **place,
            endpoint=endpoint,
            cache_dir=cache_dir,
            etag_timeout=timeout,
            tqdm_class=_patient_bar(source),
        )
    except HubError:
        raise
    except Exception as error:  # whatever the layers below raise
        raise _hub_error(error, source, endpoint) from None
    return Path(path)


def _offline(hub) -> bool:
    said = os.environ.get("HF_HUB_OFFLINE", "")
    return hub.constants.HF_HUB_OFFLINE or said.upper() in ("1", "ON", "YES", "TRUE")


def _patient_bar(source: HubSource):
    """A progress bar that gives up on a server which breaks off at the same place for ever.

    huggingface_hub tries again after every byte that it received, and would not end.
    """
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        received = 0

        def update(self, n=1):
            self.received += max(n, 0)
            if self.total and self.received > PATIENCE * self.total:
                raise HubError(
                    "half a file",
                    f"{source}: the download broke off again and again. Try again later.",
                )
            return super().update(n)

    return Bar


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
