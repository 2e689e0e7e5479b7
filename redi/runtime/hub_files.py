"""Find or download files from the Hugging Face hub; fail fast if they are missing."""

import os
from collections.abc import Sequence
from pathlib import Path


def find_hub_file(repo_id: str, filename: str, *, binding: str, folder: Sequence[str] = ()) -> Path:
    """Return the local path of a file of a hub repository; download it if it is not in the hub cache.

    The server is contacted once before the download, because without a network the hub client retries for a minute.

    Args:
        binding: the binding that takes a local path instead, such as 'StableVAE.weights'; for messages.
        folder: the files that must be in the folder, if `binding` takes a folder. Default: it takes a file.

    Raises ValueError if the file is not in the cache and cannot be downloaded.
    """
    if (cached := cached_hub_file(repo_id, filename, binding=binding)) is not None:
        return cached

    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    page = f"https://huggingface.co/{repo_id}"
    missing = f"{filename} of {repo_id} is not in the local hub cache ({constants.HF_HUB_CACHE})"
    advice = f"Download {filename} from {page} and set {binding} to its path"
    if folder:
        missing = f"{binding}: no local folder {repo_id!r}, and {missing}"
        advice = f"Download {' and '.join(folder)} from {page} into a folder and set {binding} to its path"
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ValueError(f"{missing}, and HF_HUB_OFFLINE is set. {advice}")
    try:
        get_hf_file_metadata(hf_hub_url(repo_id, filename), timeout=5)
    except GatedRepoError:
        cause = f"its licence must be accepted first: accept it at {page}, then log in with `hf auth login`"
        raise ValueError(f"{missing}, and {cause}. {advice}") from None
    except EntryNotFoundError:
        raise ValueError(f"{binding}: {repo_id} on the hub has no file {filename}: choose another model") from None
    except RepositoryNotFoundError:
        raise ValueError(f"{binding}: the hub has no public model {repo_id}. {advice}") from None
    except Exception as error:  # the errors depend on the HTTP library of the installed hub client
        cause = f"{constants.ENDPOINT} does not respond ({type(error).__name__}: {error})"
        raise ValueError(f"{missing}, and {cause}. {advice}") from None
    return Path(hf_hub_download(repo_id, filename))


def cached_hub_file(repo_id: str, filename: str, *, binding: str) -> Path | None:
    """Return the path in the local hub cache, or None; use no network. Raises ValueError for an invalid repo_id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        rule = "must be an existing file or folder, or a hub id such as 'owner/model'"
        raise ValueError(f"{binding} = {repo_id!r} {rule}") from None
    path = try_to_load_from_cache(repo_id, filename)
    return Path(path) if isinstance(path, str) else None
