"""The upload of a folder to a repository of the Hugging Face hub: on request, private unless said otherwise."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from cass_scale.errors import CassScaleError, ConfigError


def problem(repo: str) -> str | None:
    """What is wrong with a name of a repository, if anything."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        return f"repo={repo}: {error}"
    return None if "/" in repo else f"repo={repo}: OWNER/NAME is needed"


def token() -> str:
    """The token that a person has set up. Raises ConfigError where there is none."""
    found = get_token()
    if not found:
        raise ConfigError(
            "to=hub needs a token that may write: make one at https://huggingface.co/settings/tokens and run "
            "`hf auth login`, or set HF_TOKEN"
        )
    return found


def push(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Upload all files of `folder` as one commit; returns its address. The repository is made where there is none.

    Raises ConfigError without a token, offline, or where a private upload would become public; CassScaleError with the
    hub's own words where it refuses or cannot be reached.
    """
    constants.HF_HUB_DISABLE_TELEMETRY = True  # it would tell the hub about other software on this machine
    api = HfApi(token=token())
    try:
        if private and _is_public(api, repo):
            raise ConfigError(
                f"repo={repo} is there and public: say private=false to upload into it, or name another repository"
            )
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)
    except ConfigError:
        raise
    except OfflineModeIsEnabled as error:
        raise ConfigError("to=hub: HF_HUB_OFFLINE is set; unset it to upload") from error
    except HfHubHTTPError as error:
        why = error.server_message or str(error).splitlines()[0]
        raise CassScaleError(f"the hub refused {repo} ({why}); the files are in {folder}") from error
    except Exception as error:  # its HTTP library raises types of its own; all mean "not reachable"
        raise CassScaleError(f"the hub cannot be reached ({error}); the files are in {folder}") from error


def _is_public(api: HfApi, repo: str) -> bool:
    try:
        return not api.repo_info(repo).private
    except RepositoryNotFoundError:
        return False
