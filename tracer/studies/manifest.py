"""What a study is made of: manifest.json, beside one file for each fact.

Everything that a number depends on stands there: weights, settings, facts. A run that finds a
manifest of something else refuses to go on. It holds no time and no path of its own, so that two
runs of one study write the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from warnings import warn

from tracer.continuing import differences
from tracer.errors import FileFormatError, StudyError, TracerWarning
from tracer.fact import Fact
from tracer.facts.digest import facts_digest
from tracer.plan import Plan
from tracer.storage import to_json, write_json

NAME = "manifest.json"
FORMAT = 1
Status = Literal["traced", "left out", "failed", "waiting", "not reached"]


@dataclass(frozen=True)
class Entry:
    """One fact of a study and what became of it.

    Attributes:
        status: "left out" (the model does not predict it, say) and "failed" have a `reason`; "waiting" will
            be traced; "not reached" comes after the number of facts that was asked for.
    """

    fact: Fact
    status: Status = "not reached"
    reason: str = ""


@dataclass
class Manifest:
    """A study's contents as JSON values, and its facts.

    Attributes:
        model: name, fingerprint, device, layers.
        settings: of the traces, and whatever else decides their bytes: threads, round, known_only.
        data: sha256 of the facts.
        stop: when the study is done: `most` facts, or intervals narrower than `until_ci`.
        versions: of every software that traced for it; one, unless it was changed in between.
        source: where the facts were read.
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    facts: list[Entry]
    stop: dict[str, Any] = field(default_factory=dict)
    versions: list[dict[str, str]] = field(default_factory=lambda: [software()])
    source: str = ""

    @property
    def data(self) -> str:
        """sha256 over the facts, in their order."""
        return facts_digest([entry.fact for entry in self.facts])

    def numbers(self, *statuses: Status) -> list[int]:
        """Of the facts with one of these statuses."""
        return [number for number, entry in enumerate(self.facts) if entry.status in statuses]

    def counts(self) -> dict[str, int]:
        """How many facts have each status."""
        return dict(Counter(entry.status for entry in self.facts))

    def mark(self, number: int, status: Status, reason: str = "") -> None:
        """Says what became of a fact."""
        self.facts[number] = dataclasses.replace(self.facts[number], status=status, reason=reason)

    def note_software(self, now: dict[str, str]) -> None:
        """Adds this software if the study knows it not yet, and warns that rounding may differ."""
        if now in self.versions:
            return
        before = self.versions[-1]
        changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
        warn(
            f"This study was begun with other software ({', '.join(changed)}); the last digits of its later traces may "
            f"differ. The manifest lists both.",
            TracerWarning,
            stacklevel=2,
        )
        self.versions.append(now)

    def check_same(self, now: Manifest, folder: Path) -> None:
        """Raises StudyError where `now` would give other numbers than those in `folder`."""
        different = self.differences(now)
        if self.data != now.data:
            different.append(
                f"data: {len(self.facts)} facts (sha256 {self.data[:12]}) there, {len(now.facts)} facts "
                f"(sha256 {now.data[:12]}) now"
            )
        if different:
            raise StudyError(
                f"{folder} holds another study. Different: {'; '.join(different)}. "
                f"Go on with what it was made with, or give this study a folder of its own (--out)."
            )

    def differences(self, now: Manifest) -> list[str]:
        """Where model and settings differ, e.g. "settings.plan.window: 10 there, 4 now"."""
        return [
            *differences(self.model, now.model, name="model"),
            *differences(self.settings, now.settings, name="settings"),
        ]

    def save(self, folder: Path) -> None:
        """Writes manifest.json, atomically."""
        facts = [{**dataclasses.asdict(e.fact), "status": e.status, "reason": e.reason} for e in self.facts]
        about = {**vars(self), "facts": {"sha256": self.data, "counts": self.counts(), "list": facts}}
        write_json(folder / NAME, {"kind": "study", "format": FORMAT, **about})

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads what `save` wrote.

        Raises:
            FileFormatError: missing, damaged, or with facts that were changed by hand.
        """
        path = folder / NAME
        if not path.is_file():
            raise FileFormatError(f"There is no {NAME} in {folder}. Give the folder that `tracer study --out` wrote.")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            facts = [_entry(record) for record in about["facts"]["list"]]
            digest = about["facts"]["sha256"]
            own = {one.name: about[one.name] for one in dataclasses.fields(cls) if one.name != "facts"}
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(f"{path} is no manifest of this version: {error}. Run the study again.") from error
        manifest = cls(facts=facts, **own)
        if manifest.data != digest:
            raise FileFormatError(f"The facts in {path} are not those it was made with. Run the study again.")
        return manifest


def plan_record(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values, with the memory bound that its rounding depends on."""
    return json.loads(to_json({**plan.record(), "max_bytes": plan.max_bytes}))


def software() -> dict[str, str]:
    """Versions of what the numbers come from."""
    found = {"python": platform.python_version()}
    for package in ("locate-then-edit", "torch", "transformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # used from its source folder
            found[package] = "not installed"
    return found


def _entry(record: dict[str, Any]) -> Entry:
    status, reason = record.pop("status"), record.pop("reason")
    return Entry(Fact(**record), status, reason)
