"""`sctune data prepare`: a raw folder becomes a data set in the MVTec layout, or nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from sctune.data.catalog import installed_elpv
from sctune.data.convert.plan import RawImage, RawPlan, RawSet, folder_counts
from sctune.data.convert.raw import find_root, some
from sctune.data.convert.registry import known_sets, raw_set
from sctune.data.convert.split import assign_split, quarter_and_defective
from sctune.data.convert.staging import publish, refuse_existing, staged
from sctune.data.convert.targets import check_targets
from sctune.data.convert.writer import Progress, write_images
from sctune.data.image_file import GOOD
from sctune.data.manifest import MANIFEST, Manifest, Options, find_manifest
from sctune.data.places import absolute, looking_at, refuse_unprintable, resolved
from sctune.errors import DataError

ELPV_PACKAGE = "elpv-dataset"


def prepare(
    name: str,
    source: Path | None,
    out: Path,
    *,
    allow_counts: bool = False,
    group_split: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make the new folder `out` from the raw folder of a data set; returns what its manifest.json says.

    name: of known_sets(); source: None for ELPV's installed package; allow_counts: go on where the counts are not the
    published ones, or masks are missing; group_split: draw whole parts or strips into training and test, and let no
    later split cut them (SDD, AITEX); progress: called with images done and of all.

    Work goes on in OUT.partial, where an interrupted run is taken up again; `out` appears by one rename at the end.
    Raises DataError with one line: another data set, counts that differ, missing masks, images that would be one file,
    unreadable images, an existing `out` or one inside the source, a full disk.
    """
    wanted = raw_set(name)
    out = absolute(out)
    refuse_unprintable(str(out))
    refuse_existing(out)
    if group_split and wanted.unit is None:
        sets = ", ".join(one.name for one in known_sets() if one.unit)
        raise DataError(f"--group-split: {wanted.title} has no source units; leave it out (it is for {sets})")
    plan, origin = _planned(wanted, source, out)
    images = assign_split(plan.images, group_split)
    check_targets(plan.root, images)
    differences = _checked(wanted, plan, images, allow_counts, group_split)
    begun = Manifest(
        data_set=wanted.name,
        title=wanted.title,
        source=origin,
        created=_now(),
        licence=wanted.licence,
        attribution=wanted.attribution,
        page=wanted.page,
        options=Options(allow_counts=allow_counts, group_split=group_split),
        group=wanted.unit_pattern,
    )
    with staged(out, begun) as folder:
        records = write_images(folder, plan.root, images, progress)
        notes = (*plan.notes, *_unit_notes(wanted, images, group_split))
        found = {"created": _now(), "files": records, "counts": folder_counts(images)}
        manifest = begun.model_copy(update={**found, "differences": differences, "notes": notes})
        publish(folder, out, manifest)
    return manifest


def _planned(wanted: RawSet, source: Path | None, out: Path) -> tuple[RawPlan, str]:
    """What the raw folder gives, and what the manifest calls that folder."""
    place = None if source is None else absolute(source)
    with looking_at(place or wanted.title):
        root, origin = _raw_root(wanted, place)
        refuse_unprintable(str(root))
        # the place as given too: an `out` beside a nested raw folder would hide that from the next run
        for raw in (place or root, root):
            if resolved(out).is_relative_to(resolved(raw)):
                raise DataError(f"{out} lies inside the raw folder {raw}; give a folder outside of it with --out")
        return wanted.plan(root), origin


def _raw_root(wanted: RawSet, place: Path | None) -> tuple[Path, str]:
    """Where the raw layout begins, and what the manifest calls it; raises DataError where it is another one."""
    if place is None:
        if wanted.name != "elpv":
            raise DataError(f"{wanted.title} needs --source DIR, its unpacked archive; get it from {wanted.page}")
        return installed_elpv(), f"{ELPV_PACKAGE} {version(ELPV_PACKAGE)}, installed"
    refuse_unprintable(str(place))
    if not place.is_dir():
        raise DataError(f"there is no folder {place}; unpack the archive of {wanted.title} from {wanted.page}")
    if find_manifest(place) is not None:
        raise DataError(f"{place} is prepared already ({MANIFEST}); use it as it is, or give the raw folder")
    root = find_root(place, wanted.is_raw)
    if root is None:
        for other in known_sets():
            if find_root(place, other.is_raw) is not None:
                raise DataError(f"{place}: this looks like {other.title}; run `sctune data prepare {other.name}`")
        raise DataError(f"{place} is not the raw folder of {wanted.title}: it needs {wanted.layout}")
    return root, str(root)


def _checked(
    wanted: RawSet, plan: RawPlan, images: tuple[RawImage, ...], allowed: bool, grouped: bool
) -> tuple[str, ...]:
    """What is not as published; raises DataError for it unless that is allowed."""
    differences = wanted.differences(plan, images, grouped)
    masks = plan.missing_masks
    if masks:
        differences.insert(0, f"missing masks: {len(masks)}, first {masks[0]}")
    if differences and not allowed:
        raise DataError(
            f"{plan.root} is not the {wanted.title} of the paper: {some(differences, 4)}; "
            "unpack the whole archive again, or go on as it is with --allow-counts"
        )
    if not any(image.kind == GOOD and image.split == "train" for image in images):
        if grouped and any(image.kind == GOOD for image in images):
            raise DataError(
                f"{plan.root}: every {wanted.unit} has a defect or is held out, so --group-split leaves no normal "
                "image to train on; leave --group-split out"
            )
        raise DataError(f"{plan.root} gives no normal image to train on; unpack the whole archive of {wanted.title}")
    return tuple(differences)


def _unit_notes(wanted: RawSet, images: tuple[RawImage, ...], grouped: bool) -> list[str]:
    """Whether units are cut by the split, for data sets that have units."""
    if wanted.unit is None:
        return []
    if grouped:
        notes = [f"no {wanted.unit} is both in training and test (--group-split): other numbers than the paper's"]
        quarter, defective = quarter_and_defective(images)
        if defective > quarter:
            notes.append(
                f"{wanted.unit}s with a defect hold {defective} normal images, more than a quarter ({quarter}): all of "
                "them are for the test, so that none trains"
            )
        return notes
    train = {image.unit for image in images if image.split == "train"}
    both = train & {image.unit for image in images if image.split == "test"}
    cut = f"{wanted.unit}s both in training and test: {len(both)}, as in the paper"
    return [f"{cut}; --group-split keeps them apart"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
