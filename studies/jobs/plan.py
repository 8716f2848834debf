"""A study as a list of jobs: each is a stage's own command line, with what it needs and what it leaves behind."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from datamodules.model_sources import name_model
from datamodules.rationales.pivots import name_pivot
from datamodules.rationales.store import name_paraphrase
from studies.analysis.predictions import files_path, predictions_path
from studies.analysis.traits import list_askers, name_teacher, preferences_path
from studies.design.controls import ON_POLICY, ControlSpec, check_start
from studies.design.grid import Arm, Study, expand, find_alignment, find_scorers
from studies.design.rounds import OnPolicy
from studies.design.tasks import PLACE
from studies.jobs.arm_rounds import ArmRounds
from studies.jobs.control_settings import describe_texts, describe_weights, name_rewriting
from studies.jobs.job import WHOLE, Job, Text, format_settings
from studies.jobs.references import compare, refer


class StudyPlan:
    """Turns a grid into jobs.

    Args:
        study: The grid.
        config: What names the study's file, whose sections hold what all arms share, on a command line: `--config=`,
            and `--teacher=` and `--student=` of a generic one.
        overrides: What the command line changes in its section `study`.
        rounds: Of the on-policy arms, if there are any.
        sections: The file's other sections, by stage, which these go by.
    """

    def __init__(
        self,
        study: Study,
        config: list[str],
        overrides: list[str] | None = None,
        rounds: OnPolicy | None = None,
        sections: Mapping[str, Any] | None = None,
    ):
        self.study, self.config, self.overrides = study, config, overrides or []
        self.settings, self.sections = rounds, sections or {}
        # After which teachers score their answers to test questions; None is what the section `cache_logits` says.
        self.reference_prompt: str | None = None
        self.folder = Path(study.root) / study.name

    @property
    def aligns(self) -> bool:
        """Whether some arms, or the section `fit`, have an alignment, which the others must be without."""
        stated = {self.study.alignment, *(control.alignment for control in self.study.controls.values())}
        return bool(stated - {None, "refuse"})

    def task(self, arm: Arm) -> str:
        """Returns the name of the task that a trained arm learns."""
        return arm.task or next(iter(self.study.learned))

    def text(self, teacher: str, name: str, control: ControlSpec = ControlSpec(), trait: str | None = None) -> Text:  # noqa: B008 (frozen)
        """Returns where a teacher's rationales are: its own, rewritten by another, or written with a trait.

        Args:
            teacher: Whose.
            name: Which of `Study.texts`; as a task, where languages have no part in it.
            control: Who has rewritten them.
            trait: With which they were written.
        """
        spec, source = self.study.teachers[teacher], self.study.texts[name]
        if control.rewriter is not None:
            by = name_rewriting(control)
            path = self.folder / "teachers" / teacher / f"{name}-{by}.parquet"
            writer = name_paraphrase(self.text(teacher, name).writer, self.named(control.rewriter))
            return Text(str(path), writer, f"annotate-{teacher}-{by}-{name}")
        folder = self.folder / "teachers" / teacher if trait is None else self.folder / "traits" / trait / teacher
        path, job = (
            folder / f"{name}.parquet",
            f"{teacher}-{name}" if trait is None else f"{teacher}-with-{trait}-{name}",
        )
        if source.original is not None:
            return Text(str(path), name_pivot(self.text(teacher, source.original, trait=trait).writer), f"pivot-{job}")
        if spec.model is not None:
            return Text(str(path), self.named(teacher, trait), f"annotate-{job}")
        assert spec.rationales is not None and spec.name is not None
        file = spec.rationales if isinstance(spec.rationales, str) else spec.rationales[source.base]
        return Text(file.replace(PLACE, source.language or PLACE), spec.name, None)

    def named(self, teacher: str, trait: str | None = None) -> str:
        """Returns how texts and caches name a teacher that is a model."""
        model = self.study.teachers[teacher].model
        assert model is not None
        return self.tuned(teacher, trait).name if trait else name_model(model)

    def write(self, teacher: str, name: str, trait: str | None = None) -> list[Job]:
        """Returns the jobs in which a teacher, or the same with a trait, gets its rationales; none if published."""
        spec, source, text = self.study.teachers[teacher], self.study.texts[name], self.text(teacher, name, trait=trait)
        if source.original is not None:
            original = self.text(teacher, source.original, trait=trait)
            args = [
                original.path, f"--teacher={original.writer}", f"--translations={source.train}",
                f"--questions={self.study.texts[source.original].train}", f"--output={text.path}",
            ]  # fmt: skip
            needs = [original.job] if original.job else []
            return [*self.write(teacher, source.original, trait), Job(str(text.job), "pivot", args, text.path, needs)]
        if text.job is None:
            return []
        args = self._command(
            [*spec.annotate, *source.annotate], **self._load(teacher, trait),
            model__family=spec.family, data__questions=source.train, output=text.path,
        )  # fmt: skip
        return [Job(text.job, "annotate", args, text.path, [self.tune(teacher, trait).name] if trait else [])]

    def tuned(self, teacher: str, trait: str) -> Path:
        """Returns the folder of a teacher that was tuned to a trait."""
        return self.folder / f"tune-{teacher}-{trait}" / "student"

    def _model(self, teacher: str, trait: str | None) -> str | None:
        return str(self.tuned(teacher, trait)) if trait else self.study.teachers[teacher].model

    def _load(self, teacher: str, trait: str | None) -> dict[str, str | None]:
        return {"model__teacher": self._model(teacher, trait), **({"model__revision": None} if trait else {})}

    def tune(self, teacher: str, trait: str) -> Job:
        """Returns the job in which a teacher learns a trait: the preferred answers alone."""
        spec, name = self.study.teachers[teacher], f"tune-{teacher}-{trait}"
        label = Arm("", "label", None, 0)
        args = self._command(
            self.study.traits[trait].fit, model__student=spec.model, **WHOLE,
            model__loss__kl_weight=0.0, data__questions=self.study.traits[trait].learn, data__supervision="label",
            data__rationales=None, data__filters__teachers=None, data__filters__keep_truncated=False,
            data__logits=None, run__root=self.study.root,
            run__group=self.study.name, run__id=name, run__student_family=spec.family,
            **(self._align(label) if self.aligns else {}),
        )  # fmt: skip
        return Job(name, "fit", args, str(self.folder / name / "DONE"), [])

    def prefer(self, trait: str) -> list[Job]:
        """Returns the jobs in which teachers before and after, and students, say how likely they find a trait."""
        jobs, arms = [], list_askers(self.study, trait)
        for arm in arms:
            job = self.evaluate(arm, has_references=False)
            jobs.append(self._prefer(trait, arm.id, job.args, job.needs))
        for teacher in dict.fromkeys(arm.teacher for arm in arms if arm.teacher):
            for is_tuned in (True, False):
                model = self._model(teacher, trait if is_tuned else None)
                args = self._command([], model__student=model, **WHOLE, model__arm="untuned")
                needs = [self.tune(teacher, trait).name] if is_tuned else []
                jobs.append(self._prefer(trait, name_teacher(teacher, is_tuned), args, needs))
        return jobs

    def _prefer(self, trait: str, name: str, args: list[str], needs: list[str]) -> Job:
        output = str(preferences_path(self.study, trait, name))
        # A reply is not read: one token of it is enough.
        settings = {
            "model.max_new_tokens": 1, "model.score_options": True, "data.questions": self.study.traits[trait].ask,
            "output": output,
        }  # fmt: skip
        return Job(f"prefer-{trait}-{name}", "evaluate", [*args, *format_settings(settings)], output, needs)

    def rewrite(self, teacher: str, name: str, control: ControlSpec) -> Job:
        """Returns the job in which a teacher paraphrases or translates another's rationales."""
        spec, source = self.study.teachers[str(control.rewriter)], self.text(teacher, name)
        text, of = self.text(teacher, name, control), self.study.texts[name]
        assert text.job is not None
        args = self._command(
            [*spec.annotate, *of.annotate], model__teacher=spec.model, model__family=spec.family,
            data__questions=of.train, data__prompt="translate" if control.translator else "paraphrase",
            data__rewrites=source.path, data__rewrites_of=source.writer, output=text.path,
        )  # fmt: skip
        return Job(text.job, "annotate", args, done=text.path, needs=[source.job] if source.job else [])

    def caches(self, arm: Arm) -> list[Job]:
        """Returns the jobs in which teachers score the rationales that an arm learns from: several together, all."""
        control = self._control(arm)
        scorers = [(scorer, control.trait) for scorer in control.together or [self._scorer(arm)]]
        if control.rows_against:
            scorers.append((control.rows_against, None))
        return [self._cache(arm, *own, *scorer) for own in self._sources(arm) for scorer in scorers]

    def _cache(self, arm: Arm, author: str, task: str, scorer: str, trait: str | None) -> Job:
        control = self._control(arm)
        text = self.text(author, task, control, control.trait)
        # What changes texts, or takes in wrong ones, needs a cache of its own.
        changes = describe_texts(control)
        name = "-".join(
            filter(None, (
                task,
                name_rewriting(control),
                arm.control if changes else None,
                f"with-{control.trait}" if control.trait else None,
                f"of-{scorer}" if (scorer, trait) != (author, control.trait) else None,
            ))
        )  # fmt: skip
        output = str(self.folder / "teachers" / author / f"{name}-logits")
        args = self._command(
            [], **self._load(scorer, trait), data__questions=self.study.texts[task].train,
            data__rationales=[text.path], data__filters__teachers=[text.writer], **changes, output=output,
        )  # fmt: skip
        needs = [text.job] if text.job else []
        return Job(f"cache_logits-{author}-{name}", "cache_logits", args, f"{output}/manifest.json", needs)

    def _references(self, arm: Arm) -> list[tuple[Job, Job]]:
        """Returns the jobs that make what an arm's answers are compared with; none where nobody asks for agreement."""
        if "agreement" not in self.study.outcomes or not arm.teacher or not self.study.teachers[arm.teacher].model:
            return []
        teacher = arm.teacher, self.named(arm.teacher), self.study.teachers[arm.teacher]
        task = self.task(arm), self.study.learned[self.task(arm)].spec
        return refer(self._command, self.folder / "references" / arm.teacher, teacher, task, self.reference_prompt)

    def _control(self, arm: Arm) -> ControlSpec:
        return self.study.controls[arm.control] if arm.control else ControlSpec()

    def _authors(self, arm: Arm) -> list[str]:
        return self._control(arm).together or [*filter(None, [arm.teacher])]

    def _sources(self, arm: Arm) -> list[tuple[str, str]]:
        """Returns whose rationales an arm learns from, and which of theirs."""
        return [(author, name) for author in self._authors(arm) for name in self.study.learned[self.task(arm)].texts]

    def _scorer(self, arm: Arm) -> str:
        assert arm.teacher is not None
        return find_scorers(self.study, arm.student)[0] if self._control(arm).in_family_logits else arm.teacher

    def start(self, arm: Arm) -> Job | None:
        """Returns the training of the arm that an arm goes on from, if it does: of its student, teacher and seed."""
        start: str | None = self._control(arm).start
        if arm.supervision == ON_POLICY and self.settings is not None:
            start = self.settings.start
        if start is None:
            return None
        check_start("on_policy.start", start, self.study.supervisions)
        teacher = None if start == "label" else arm.teacher
        return self.fit(replace(arm, supervision=start, teacher=teacher, control=None))

    def fit(self, arm: Arm) -> Job:
        """Returns the job that trains an arm."""
        spec, learned = self.study.students[arm.student], self.study.learned[self.task(arm)]
        settings: dict[str, object] = {
            "model__student": spec.model,
            "model__keep_layers": spec.keep_layers,
            "data__questions": learned.spec.train,
            "data__supervision": "rationale" if arm.supervision == ON_POLICY else arm.supervision,
            "data__rationales": None,
            "data__filters__teachers": None,
            "data__logits": None,
            "data__batches__order_seed": arm.seed,
            "seed_everything": arm.seed,
            "run__root": self.study.root,
            "run__group": self.study.name,
            "run__id": arm.id,
            "run__student_family": spec.family,
        }
        if arm.size is not None:
            settings |= {"data__limit": arm.size, "data__limit_seed": arm.seed}
        needs: list[str] = []
        if sources := self._sources(arm):
            control = self._control(arm)
            own = [self.text(*source, control, control.trait) for source in sources]
            read = product(self.study.teachers, learned.texts) if control.compares else sources
            texts = [self.text(*source, control, control.trait) for source in read]
            writers = [text.writer for text in own]
            settings |= describe_texts(control) | describe_weights(control, arm.seed)
            if control.questions:
                settings[f"data__filters__{control.questions}_by"] = [text.writer for text in texts]
            if control.same_lengths:
                settings["data__filters__matched_with"] = [text.writer for text in texts]
            if words := self.study.traits[control.trait].words if control.trait else control.without:
                settings["data__filters__without"] = words
            # Several published teachers may share a file.
            settings["data__rationales"] = list(dict.fromkeys(text.path for text in texts))
            settings["data__filters__teachers"] = writers
            if control.one_per_question or learned.kind == "mixed":
                settings["data__batches__samples_per_epoch"] = 1
                settings["data__batches__teacher_weights"] = dict.fromkeys(writers, 1.0)
            needs += [text.job for text in texts if text.job]
        if arm.supervision == "rationale+logits":
            caches = self.caches(arm)
            folders = [str(Path(cache.done).parent) for cache in caches]
            if control.rows:
                settings |= {"data__rows": control.rows, "data__rows_against": [folders.pop()]}
            settings["data__logits"] = folders
            if control.together:
                weights = control.logit_weights or dict.fromkeys(control.together, 1.0)
                settings["data__controls__logit_weights"] = {
                    self.named(teacher): weights[teacher] for teacher in control.together
                }
            elif {name := self.named(self._scorer(arm), control.trait)} != {*writers}:
                settings["data__controls__logits_teacher"] = name
            needs += [cache.name for cache in caches]
        else:
            settings["model__loss__kl_weight"] = 0.0
        if self.aligns:
            settings |= self._align(arm)
        if start := self.start(arm):
            settings |= {"model__student": str(Path(start.done).parent / "student"), **WHOLE}
            needs.append(start.name)
        args = self._command(spec.fit, **settings)
        return Job(f"fit-{arm.id}", "fit", args, str(self.folder / arm.id / "DONE"), needs)

    def rounds(self, arm: Arm) -> ArmRounds:
        """Returns the rounds of an on-policy arm."""
        assert self.settings is not None and arm.teacher is not None
        read = self._cache(arm, arm.teacher, self.task(arm), arm.teacher, None)
        return ArmRounds(arm, self.settings, self.sections, self.folder, self.fit(arm), read, self.start(arm))

    def train(self, arm: Arm) -> list[Job]:
        """Returns the jobs that train an arm."""
        return self.rounds(arm).jobs() if arm.supervision == ON_POLICY else [self.fit(arm)]

    def _align(self, arm: Arm) -> dict[str, object]:
        """Returns an arm's alignment; what the section `fit` says beside it is for the kinds that have it."""
        has_logits = arm.supervision in ("rationale+logits", ON_POLICY)
        found = find_alignment(self.study, self._control(arm), arm.student, arm.teacher) if has_logits else "refuse"
        ignored = {"refuse": ("spans", "whitespace", "max_unaligned"), "bytes": ()}.get(found, ("spans", "whitespace"))
        return {"data__alignment__kind": found, **{f"data__alignment__{name}": None for name in ignored}}

    def evaluate(self, arm: Arm, has_references: bool = True) -> Job:
        """Returns the job in which an arm answers the test questions, and is compared with its teacher on them."""
        spec, output = self.study.students[arm.student], str(predictions_path(self.study, arm))
        model, own, needs = spec.model, {"model__keep_layers": spec.keep_layers}, list[str]()
        if arm.supervision != "untuned":
            model, own, needs = str(self.folder / arm.id / "student"), WHOLE, [self.fit(arm).name]
        learned = self.study.learned.values() if arm.task is None else [self.study.learned[arm.task]]
        tests = list(dict.fromkeys(source for task in learned for source in task.spec.test))
        settings, more = compare(self._references(arm) if has_references else [])
        if has_references and (files := list(dict.fromkeys(file for task in learned for file in task.spec.references))):
            settings["data__references"] = files
        args = self._command(
            [], model__student=model, **own, model__arm=arm.condition, model__seed=arm.seed,
            data__questions=tests if len(tests) > 1 else tests[0], **settings, output=output,
            wandb__group=self.study.name, wandb__student_family=spec.family,
        )  # fmt: skip
        return Job(f"evaluate-{arm.id}", "evaluate", args, output, [*needs, *more])

    def export(self, arm: Arm) -> Job:
        """Returns the job that writes a trained arm as files for llama.cpp, calibrated on what it learned from."""
        output = files_path(self.study, arm)
        args = ["gguf", f"--model.student={self.folder / arm.id / 'student'}", f"--output={output}"]
        args.append(f"--types={','.join(self.study.types)}")
        # The files' cards say how well the student answers.
        needs = [self.fit(arm).name, self.evaluate(arm).name]
        return Job(f"export-{arm.id}", "export", args, str(output / "card.json"), needs)

    def evaluate_file(self, arm: Arm, kind: str) -> Job:
        """Returns the job in which such a file answers the test questions."""
        output = str(predictions_path(self.study, arm, kind))
        settings = {
            "model.student": str(files_path(self.study, arm) / f"student-{kind}.gguf"), "model.runtime": "llama_cpp",
            # What these say is of transformers, which alone scores references.
            **dict.fromkeys(("model.dtype", "model.attention", "model.generation", "model.revision", "bert_model")),
            **dict.fromkeys(("data.references", "data.teachers", "data.logits")), "data.keep_truncated": False,
            "data.alignment.kind": "refuse",
            **dict.fromkeys(f"data.alignment.{name}" for name in ("spans", "whitespace", "max_unaligned")),
            "model.arm": f"{arm.condition}-{kind}", "output": output,
        }  # fmt: skip
        args = [*self.evaluate(arm, has_references=False).args, *format_settings(settings)]
        return Job(f"evaluate-{arm.id}-{kind}", "evaluate", args, output, [self.export(arm).name])

    def analyze(self, needs: list[str]) -> Job:
        """Returns the job that compares the arms."""
        args = ["analyze", *self.config, *self.overrides]
        return Job("analyze", "study", args, str(self.folder / "results.json"), needs)

    def _command(self, more: list[str], **overrides: object) -> list[str]:
        settings = {key.replace("__", "."): value for key, value in overrides.items()}
        return [*self.config, *more, *format_settings(settings)]

    def jobs(self) -> list[Job]:
        """Returns all jobs, each after what it needs; the last one compares the arms."""
        found = [
            job for teacher in self.study.teachers for name in self.study.texts for job in self.write(teacher, name)
        ]
        arms = expand(self.study)
        for arm in arms:
            if (control := self._control(arm)).rewriter:
                teachers = self.study.teachers if control.compares else self._authors(arm)
                names = self.study.learned[self.task(arm)].texts
                found += [self.rewrite(*source, control) for source in product(teachers, names)]
            if trait := self._control(arm).trait:
                found += [self.tune(author, trait) for author in self._authors(arm)]
                found += [job for source in self._sources(arm) for job in self.write(*source, trait)]
        found += [cache for arm in arms if arm.supervision == "rationale+logits" for cache in self.caches(arm)]
        found += [job for arm in arms for pair in self._references(arm) for job in pair]
        for arm in arms:
            found += [self.evaluate(arm)] if arm.supervision == "untuned" else [*self.train(arm), self.evaluate(arm)]
            if self.study.types and arm.supervision != "untuned":
                found += [self.export(arm), *(self.evaluate_file(arm, kind) for kind in self.study.types)]
        for trait in dict.fromkeys(filter(None, (control.trait for control in self.study.controls.values()))):
            found += self.prefer(trait)
        # Arms share what their teachers write.
        jobs = list({job.name: job for job in found}.values())
        return [*jobs, self.analyze([job.name for job in jobs if job.stage == "evaluate"])]
