"""A hub of Hugging Face on this machine: what is pushed can be downloaded."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub


def stand_in(monkeypatch, folder):
    """Take the hub's place; return the list of what is asked of it: (repository, revision, files)."""
    asked = []

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            assert exist_ok
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, allow_patterns):
            (folder / repo_id).mkdir(parents=True)
            for name in allow_patterns:
                (folder / repo_id / name).write_bytes((Path(folder_path) / name).read_bytes())
            return f"https://huggingface.co/{repo_id}/commit/1"

    def download(repo_id, revision=None, allow_patterns=None):
        asked.append((repo_id, revision, sorted(allow_patterns)))
        if not (folder / repo_id).exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError("cannot find the requested files offline")
        return str(folder / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked
