"""Data that an earlier version prepared: its manifest is read, and preparing the text again gives the same one."""

import json
import sys

import pytest
from old_files import Old

from muloco_runner.config import RunConfig
from muloco_runner.data.command import main
from muloco_runner.data.corpus import load_corpus
from muloco_runner.data.prepared.manifest import read_manifest


def test_the_manifest_is_read_and_written_again_the_same(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["muloco-data", *words])
        main()

    prepared, again = old.root / "prepared", old.root / "again"
    command("prepare", "text", "--out", "again", "--validation-fraction", "0.2", "--processes", "1")
    assert json.loads((again / "manifest.json").read_text()) == json.loads((prepared / "manifest.json").read_text())
    # Under the old manifest the tokens are what they were, and an old run finds them.
    for file in [*again.glob("*.tokens"), *again.glob("*.documents")]:
        file.rename(prepared / file.name)
    command("inspect", "prepared", "--verify")
    manifest = read_manifest(prepared)
    assert manifest.content_hash == manifest.hash_of_content() == "f7055d0ade422d45"
    run = RunConfig.from_dict(old.expected["on_prepared_data"]["config"])
    assert run.run_id == old.expected["on_prepared_data"]["run_id"]
    assert load_corpus(run.data).content_hash == manifest.content_hash
