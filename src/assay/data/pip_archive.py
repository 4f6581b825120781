"""Run as a script: save the source archive of a release, as it lies on pip's index, and execute nothing of it.

``pip download`` prepares the metadata of a source archive, which runs its ``setup.py``. Here pip finds the file and
its session, with the user's index, proxy and certificates, fetches the bytes; whoever asked checks their hash. These
parts of pip are internal to it, so a pip that lacks them is an error, never a reason to try something else.
"""

import sys
from pathlib import Path

_TIMEOUT_SECONDS = 60


def save_archive(name: str, version: str, target: Path) -> None:
    """Find the source archive of a release and save it.

    Args:
        name: Name on the package index.
        version: Release.
        target: File to write; only an archive of that file name is taken.

    Raises:
        LookupError: The index does not have it.
    """
    from pip._internal.commands import create_command

    command = create_command("download")
    options, _ = command.parse_args(["--no-binary", ":all:", "--retries", "1", "--no-input"])
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        links = [candidate.link for candidate in finder.find_all_candidates(name)]
        link = next((link for link in links if link.filename == target.name), None)
        if link is None:
            raise LookupError(f"no {target.name} for {name}=={version} on the index")
        # Without this header an index may wrap the archive in gzip once more.
        answer = session.get(
            link.url_without_fragment, headers={"Accept-Encoding": "identity"}, timeout=_TIMEOUT_SECONDS
        )
        answer.raise_for_status()
        target.write_bytes(answer.content)


if __name__ == "__main__":
    try:
        save_archive(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    except Exception as error:  # Whatever pip raises becomes the sentence of the caller's error.
        sys.exit(f"ERROR: {error or type(error).__name__}")
