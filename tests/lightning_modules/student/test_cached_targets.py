"""Students learn from every kind of logit cache; kinds agree where they must; what a kind cannot give is refused."""

from pathlib import Path

import pytest

from datamodules.distillation import DistillationDataModule
from datamodules.logit_cache.reader import LogitCache
from datamodules.rationales.controls import DistillationControls
from lightning_modules.student.cached_targets import check_cache
from lightning_modules.student.student import DistillationModule
from losses.distillation import DistillationLoss
from losses.schedules import Schedule
from tests.lightning_modules.conftest import World
from tests.tiny import build, capture, fit, save_model

KINDS = {
    "top_k": {"top_k": 300, "values": "float16"},
    "adaptive": {"kind": "adaptive", "top_k": 255, "mass": 0.999, "values": "float16"},
    "sampled": {"kind": "sampled", "top_k": None, "draws": 2000, "temperatures": None},
    "hybrid": {"kind": "hybrid", "top_k": 32, "draws": 2000, "temperatures": None},
    "hidden": {"kind": "hidden", "top_k": None, "values": "float32", "temperatures": None},
}


@pytest.fixture(scope="module")
def caches(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("kinds")
    return {
        kind: capture(folder / kind, world.teacher, world.questions, [world.rationales], **options)
        for kind, options in KINDS.items()
    }


def measure(
    world: World,
    logits: str | list[str],
    loss: DistillationLoss,
    weights: dict | None = None,
    rows: dict | None = None,
    supervision: str = "rationale+logits",
    **options,
) -> dict[str, float]:
    """Returns what one step logs of a student that does not move."""
    data = build(
        DistillationDataModule,
        world.student,
        world.questions,
        supervision,
        logits=[logits] if isinstance(logits, str) else logits,
        controls=DistillationControls(
            logits_teacher=None if weights or "friend" not in str(logits) else "friend", logit_weights=weights
        ),
        rationales=[world.rationales],
        prompt="plain",
        **(rows or {}),
    )
    module = DistillationModule(world.student, loss, learning_rate=0.0, schedule="constant", **options)
    return {name: value.item() for name, value in fit(module, data).callback_metrics.items()}


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("fused_head", [True, False])
def test_hidden_states_teach_what_the_whole_distribution_does(world, caches, divergence: str, fused_head: bool) -> None:
    """The student's head has five ids more than the teacher's, which has no mass there."""
    loss = DistillationLoss(kl_weight=1.0, temperature=2.0, divergence=divergence)
    hidden = measure(world, caches["hidden"], loss, fused_head=fused_head)
    top_k = measure(world, caches["top_k"], loss, fused_head=fused_head)
    names = ["divergence", "teacher_entropy", "agreement"]
    if divergence == "reverse_kl":
        # On those five ids it goes by the stand-ins for a teacher's zero: one for each id, or one for their bucket.
        names = names[1:]
    for name in names:
        for segment in ("rationale", "answer"):
            key = f"train/{name}_{segment}"
            assert hidden[key] == pytest.approx(top_k[key], rel=2e-3), key
    if divergence != "reverse_kl":
        assert hidden["train/gradient_norm"] == pytest.approx(top_k["train/gradient_norm"], rel=2e-3)


@pytest.mark.parametrize("kind", ["adaptive", "sampled", "hybrid"])
def test_other_kinds_come_near_it(world: World, caches: dict, kind: str) -> None:
    loss = DistillationLoss(kl_weight=1.0, divergence="soft_cross_entropy")
    found, truth = measure(world, caches[kind], loss), measure(world, caches["hidden"], loss)
    # Sums over some hundred tokens, each of 2000 draws or nearly all mass.
    assert found["train/gradient_norm"] == pytest.approx(truth["train/gradient_norm"], rel=0.05)
    for segment in ("rationale", "answer"):
        key = f"train/divergence_{segment}"
        assert found[key] == pytest.approx(truth[key], rel=0.05), key


def test_hidden_states_teach_at_any_temperature(world: World, caches: dict) -> None:
    loss = DistillationLoss(kl_weight=1.0, temperature=Schedule(shape="linear", start=1.7, end=1.2))
    assert measure(world, caches["hidden"], loss)["train/divergence_answer"] > 0.01


@pytest.fixture(scope="module")
def friends(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Another teacher's caches of the same texts."""
    folder = tmp_path_factory.mktemp("friends")
    model = save_model(folder / "friend", seed=5)
    return {
        kind: capture(folder / f"friend-{kind}", model, world.questions, [world.rationales], **KINDS[kind])
        for kind in ("top_k", "sampled")
    }


@pytest.mark.parametrize(("kind", "temperature"), [("top_k", 1.0), ("top_k", 2.0), ("sampled", 1.0)])
@pytest.mark.parametrize("fused_head", [True, False])
def test_a_mixture_teaches_what_its_teachers_do_by_weight(
    world, caches, friends, kind: str, temperature: float, fused_head: bool
) -> None:
    """The soft cross-entropy is linear in the teacher's softened distribution."""
    loss = DistillationLoss(kl_weight=1.0, temperature=temperature, divergence="soft_cross_entropy")
    both, weights = [caches[kind], friends[kind]], {"friend": 3.0, "teacher": 1.0}
    mixed = measure(world, both, loss, weights, fused_head=fused_head)
    own, other = (measure(world, path, loss, fused_head=fused_head) for path in both)
    for segment in ("rationale", "answer"):
        key = f"train/divergence_{segment}"
        assert mixed[key] == pytest.approx(0.25 * own[key] + 0.75 * other[key], rel=2e-6), key
        assert abs(own[key] - other[key]) > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_rows_that_all_agree_teach_what_all_rows_do(
    world: World, caches: dict, tmp_path: Path, temperature: float
) -> None:
    """A teacher that is the same but for its name agrees everywhere."""
    twin = save_model(tmp_path / "twin", seed=1)
    against = [capture(tmp_path / "twin-logits", twin, world.questions, [world.rationales], **KINDS["top_k"])]
    loss = DistillationLoss(kl_weight=1.0, temperature=temperature)
    plain = measure(world, caches["top_k"], loss)
    agreeing = measure(world, caches["top_k"], loss, rows={"rows": "agreeing", "rows_against": against})
    assert agreeing.pop("rows/agreeing") == 1 and agreeing.pop("rows/divergent") == agreeing.pop("rows/unknown") == 0
    assert agreeing == pytest.approx(plain, rel=1e-5)
    with pytest.raises(ValueError, match=r"data\.rows divergent: no token of the 8 completions is so"):
        measure(world, caches["top_k"], loss, rows={"rows": "divergent", "rows_against": against})


def test_divergent_and_agreeing_rows_are_all_rows(world: World, caches: dict, friends: dict) -> None:
    """Their losses, each the text's where the other's teacher speaks, add up to the text's and the teacher's."""
    loss = DistillationLoss(kl_weight=1.0)
    parts = [
        measure(world, caches["top_k"], loss, rows={"rows": kind, "rows_against": [friends["top_k"]]})
        for kind in ("divergent", "agreeing")
    ]
    text = measure(world, [], DistillationLoss(kl_weight=0.0), supervision="rationale")
    whole = measure(world, caches["top_k"], loss)
    assert parts[0]["train/loss"] != pytest.approx(parts[1]["train/loss"], rel=1e-3)
    assert sum(part["train/loss"] for part in parts) == pytest.approx(
        text["train/loss"] + whole["train/loss"], rel=1e-5
    )


def test_a_mixture_is_not_interpolated(world: World, caches: dict, friends: dict) -> None:
    loss = DistillationLoss(kl_weight=1.0, temperature=1.5, unstored_temperature="interpolate")
    with pytest.raises(
        ValueError, match=r"1\.5 is not in .*; capture again with it, or choose one of these: rows that are mixed"
    ):
        measure(world, [caches["top_k"], friends["top_k"]], loss, {"friend": 1.0, "teacher": 1.0})


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("top_k", {"temperature": 3.0}, r"temperature 3\.0 is not in .*top_k, which has \[1\.0, 2\.0\]"),
        ("top_k", {"temperature": Schedule(shape="linear", start=2.0, end=1.0)}, r"temperature 1\.0 to 2\.0 is not in"),
        ("top_k", {"temperature": 3.0, "unstored_temperature": "interpolate"}, r"temperature 3\.0 is not in"),
        ("sampled", {"divergence": "jsd"}, "a sampled teacher gives only"),
        ("hybrid", {"temperature": 2.0}, "drawn at 1, not at 2"),
        ("hidden", {"tail": "ignore"}, "tail ignore would be ignored"),
    ],
)
def test_what_a_cache_cannot_give_is_refused_before_training(caches, kind: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_cache(DistillationLoss(kl_weight=0.5, **settings), LogitCache(Path(caches[kind])))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("top_k", {"temperature": 2.0}),
        ("adaptive", {"temperature": Schedule(shape="step", start=2.0, end=1.0, begin=0.5)}),
        ("top_k", {"temperature": 1.5, "unstored_temperature": "interpolate"}),
        ("sampled", {"divergence": "soft_cross_entropy"}),
        ("hidden", {"temperature": 7.0, "divergence": "reverse_kl"}),
    ],
)
def test_what_a_cache_can_give_is_not_refused(caches: dict, kind: str, settings: dict) -> None:
    check_cache(DistillationLoss(kl_weight=0.5, **settings), LogitCache(Path(caches[kind])))
