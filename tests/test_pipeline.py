"""The main line end to end, from keys to verdict: on a tiny model, and on the bundled real one."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from oml_fast import FingerprintSet, embed, generate, verify
from oml_fast.cli import main
from oml_fast.embed import Recipe
from oml_fast.fingerprint import Settings
from oml_fast.models import HfCompleter, load, save
from oml_fast.secret import new_secret


def test_the_line_on_a_tiny_model(tiny_folder: Path, tmp_path: Path) -> None:
    secret = new_secret()
    base, model = load(tiny_folder), load(tiny_folder)
    settings = Settings(key_source="words", formats=("raw", "chat"), responses_per_key=2, response_length=2)
    made = generate(base, 16, secret, settings=settings)
    made.fingerprints.save(tmp_path / "set.json")
    fingerprints = FingerprintSet.load(tmp_path / "set.json")
    fingerprints.check_draws(secret)
    trained = embed(model, fingerprints, recipe=Recipe(learning_rate=5e-3, pull=0.3, max_epochs=80, stop_kl=5))
    (tmp_path / "model").mkdir()
    save(model, tmp_path / "model")
    suspect = verify(fingerprints, HfCompleter(load(tmp_path / "model")), mode="fixed")
    assert trained.fsr == suspect.fsr
    assert suspect.verdict == "match"
    assert verify(fingerprints, HfCompleter(base)).verdict == "no_match"


@pytest.mark.slow
@pytest.mark.real_model
def test_the_demo_on_the_bundled_model(
    bundled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--model", str(bundled_folder), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    trained, verified, base = result["embed"], result["verify"], result["verify_base"]
    assert result["generate"]["num_fingerprints"] == 64
    assert trained["kl_to_base"] <= 0.10
    assert trained["perplexity"] <= 1.10 * trained["perplexity_base"]
    assert verified["fsr"] >= 0.98
    assert (verified["verdict"], verified["test"]) == ("match", "rank")
    assert verified["p_value"] <= 1e-9
    assert base["verdict"] == "no_match"
    secrets = [out / "fingerprints", *(out / "fingerprints").iterdir()]
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in secrets)

    # Another owner, with the same keys, so that the windows are the same too: only the secret draw differs.
    fingerprints = FingerprintSet.load(out / "fingerprints" / "fingerprints.json")
    keys = [fingerprint.key for fingerprint in fingerprints]
    other = generate(load(bundled_folder), 64, new_secret(), settings=Settings(key_source="file"), keys=keys)
    accused = verify(other.fingerprints, HfCompleter(load(out / "model")), test="window", mode="fixed")
    assert accused.informative > 32
    assert accused.verdict == "no_match"
    assert verify(other.fingerprints, HfCompleter(load(out / "model")), test="rank", mode="fixed").verdict == "no_match"
