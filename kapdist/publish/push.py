"""`--push`: a folder to Hugging Face's hub, with the user's token; every wait has a limit."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kapdist.errors import InputError, TransientError, first_line, one_line
from kapdist.run.installed import need

SILENCE_SECONDS = 60.0  # longest of the hub's, in every request
PUSH_MINUTES = 60.0
WRONG = {400, 401, 403, 404, 409, 413, 422}  # what another try does not mend


def check_push(repo: str) -> str:
    """Return the user's token, from HF_TOKEN or as `hf auth login` stored it.

    Raises:
        InputError: huggingface_hub is missing, no repository has such a name, or there is no token.
    """
    need("huggingface_hub", place="--push")
    import huggingface_hub as hub
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise InputError("--push", f"OWNER/NAME ({first_line(error)})", repr(repo)) from None
    token: str | None = hub.get_token()
    if token is None:
        raise InputError(f"--push {repo}", "a token of yours for the hub (HF_TOKEN, or `hf auth login`)", "none")
    return token


def push(folder: Path, names: Sequence[str], repo: str, token: str, private: bool = False) -> str:
    """Bring files of a folder to the hub in one commit; the repository is made where there is none.

    The address of the hub is HF_ENDPOINT's. Large files go by Git LFS over HTTP, each request of which has a limit;
    Xet's own transport has none that could be set.

    Returns:
        The address of the commit.

    Raises:
        InputError: the hub refuses it: the token, the name, the card.
        TransientError: the hub is away, busy or silent; the folder stays, and the same command tries again.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    constants.HF_HUB_DISABLE_XET = True
    logging.set_verbosity_error()  # it says each retry
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    api = hub.HfApi(endpoint=endpoint, token=token, library_name="kapdist")
    try:
        with limited(hub):
            api.create_repo(repo, private=private or None, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, allow_patterns=list(names), commit_message="kapdist export"
            )
    except Exception as error:  # of several libraries
        raise failure(error, f"--push {repo}", endpoint, folder) from None
    return str(done.commit_url)


@contextlib.contextmanager
def limited(hub: Any) -> Iterator[None]:
    """Have the library's clients wait so long for each answer, and for all of them, and no longer."""
    session, until = hub.get_session(), time.monotonic() + 60 * PUSH_MINUTES
    client, hooks = type(session), session.event_hooks

    def in_time(request: Any) -> None:
        if time.monotonic() > until:
            raise TimeoutError(f"{PUSH_MINUTES:g} minutes have not been enough")

    all_hooks = {**hooks, "request": [*hooks["request"], in_time]}
    hub.set_client_factory(lambda: client(event_hooks=all_hooks, follow_redirects=True, timeout=SILENCE_SECONDS))
    try:
        yield
    finally:
        hub.set_client_factory(lambda: client(event_hooks=hooks, follow_redirects=True, timeout=None))


def failure(error: Exception, place: str, endpoint: str, folder: Path) -> Exception:
    """Return what to say: the user's to mend, or of the hub, which another try may find back."""
    cause: BaseException | None = error
    while cause is not None:
        answer = getattr(cause, "response", None)
        if answer is not None and answer.status_code in WRONG:
            return InputError(place, expected_of(answer.status_code, endpoint), said_by_the_hub(cause, answer))
        cause = cause.__cause__ or cause.__context__
    said = f"{type(error).__name__}: {first_line(error)}"
    whole = f"{folder} is whole, and the same command tries again"
    return TransientError(one_line(f"{place}: {endpoint} did not take it ({said}); {whole}"))


def expected_of(status: int, endpoint: str) -> str:
    if status == 401:
        return f"a token that {endpoint} knows (HF_TOKEN, or `hf auth login`)"
    if status == 403:
        return "a token that may write there"
    return f"what {endpoint} takes"


def said_by_the_hub(error: BaseException, answer: Any) -> str:
    message = getattr(error, "server_message", None) or first_line(error)
    return f"{answer.status_code}: {message.strip().splitlines()[0]}"
