from scripts.common.front import check_command
from tests.scripts.pipeline import ROOT


def test_a_studys_dry_run_has_options_of_its_own() -> None:
    config = ROOT / "configs" / "experiments" / "microworld.yaml"
    check_command("study", "scripts/study.py", ["run", f"--config={config}", "--dry-run", "--device=A100"])
