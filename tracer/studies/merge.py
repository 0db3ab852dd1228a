"""Put studies of different facts, made with the same model and settings, into one folder."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

from tracer.errors import StudyError
from tracer.fact import Fact
from tracer.storage import atomic_folder
from tracer.studies.manifest import Entry, Manifest
from tracer.studies.study import Study


def merge(studies: Sequence[Study], out: str | Path) -> Study:
    """Writes a new study that has the facts of all, each once (the first study that traced it gives its trace).

    Noise is scaled by a study's own facts, and subjects are replaced by those of its own facts, unless these are
    given: studies to be merged need the same, e.g. `Plan(corruption=GaussianNoise(sigma=0.1))` or
    `Plan(corruption=ReplaceSubject(facts=all_of_them))`.

    Raises:
        StudyError: no studies, other models or settings, or a folder that is there already.
    """
    out = Path(out)
    if not studies:
        raise StudyError("No studies to merge.")
    if out.exists():
        raise StudyError(f"{out} is there already. Give the merged study a new folder.")
    first = studies[0].manifest
    for study in studies[1:]:
        if different := first.differences(study.manifest):
            raise StudyError(
                f"{studies[0].folder} (there) and {study.folder} (now) were not made alike: {'; '.join(different)}. "
                f"Merge studies of one model and setting; `compare` takes others."
            )
    entries: dict[Fact, tuple[Entry, Path]] = {}
    for study in studies:
        for number, entry in enumerate(study.manifest.facts):
            known = entries.get(entry.fact)
            if known is None or (entry.status == "traced" and known[0].status != "traced"):
                entries[entry.fact] = entry, Study.path_in(study.folder, number)
    versions = {str(one): one for study in studies for one in study.manifest.versions}
    merged = Manifest(
        model=copy.deepcopy(first.model),
        settings=copy.deepcopy(first.settings),
        facts=[entry for entry, _ in entries.values()],
        stop={"most": None, "until_ci": None},
        versions=list(versions.values()),
        source=" + ".join(study.manifest.source or study.folder.name for study in studies),
    )
    with atomic_folder(out) as folder:
        for number, (entry, path) in enumerate(entries.values()):
            if entry.status == "traced":
                target = Study.path_in(folder, number)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
        merged.save(folder)
    return Study.open(out)
