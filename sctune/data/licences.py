"""What may be done with the images of a folder that `sctune data prepare` has not made, and whose they are.

What its user wrote into licence.yaml goes before a known name of the folder, and that before the text of a licence that
lies in it. A category, as of MVTec AD, is also asked for in the folder above.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sctune.config import read_yaml
from sctune.data.manifest import MANIFEST
from sctune.data.places import looking_at
from sctune.errors import ConfigError, DataError, nearest

NOT_STATED = "not stated"
FILE = "licence.yaml"
"""A user's own words, with the keys licence and attribution."""
_KEYS = ("licence", "attribution")
_TEXTS = re.compile(r"(licen[cs]e|copying)(\.txt|\.md)?", re.IGNORECASE)
"""Names of files that hold a licence."""
_TITLES = {"noncommercial": "NC", "sharealike": "SA", "noderivatives": "ND", "noderivs": "ND"}
"""Words in the titles of Creative Commons' licences."""
_READ = 65_536
"""Bytes of such a file that are read."""


@dataclass(frozen=True)
class Terms:
    """licence: of the images, in short; attribution: what a picture made from them must carry; notes: for the user."""

    licence: str = NOT_STATED
    attribution: str | None = None
    notes: tuple[str, ...] = ()


KNOWN = {
    "elpv": Terms(
        "CC BY-NC-SA 4.0",
        "ELPV data set, zae-bayern/elpv-dataset, by Buerhop-Lutz, Deitsch, Maier, Gallwitz, Berger, Doll, Hauch, Camus "
        "and Brabec (A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery, "
        "EU PVSEC 2018; Deitsch et al., Solar Energy 185, 2019), licensed CC BY-NC-SA 4.0",
    ),
    "mvtec": Terms(
        "CC BY-NC-SA 4.0",
        "MVTec AD, by Bergmann, Fauser, Sattlegger and Steger (MVTec AD, A Comprehensive Real-World Dataset for "
        "Unsupervised Anomaly Detection, CVPR 2019), licensed CC BY-NC-SA 4.0",
    ),
    "sdd": Terms(
        "CC BY-NC-SA 4.0",
        "KolektorSDD, by Tabernik, Šela, Skvarč and Skočaj (Segmentation-Based Deep-Learning Approach for "
        "Surface-Defect Detection, Journal of Intelligent Manufacturing 31, 2020), licensed CC BY-NC-SA 4.0",
    ),
    "aitex": Terms(
        "unclear (one catalogue says CC0)",
        "AITEX fabric image database, by Silvestre-Blanes, Albero-Albero, Miralles, Pérez-Llorens and Moreno (A Public "
        "Fabric Database for Defect Detection Methods and Results, Autex Research Journal 19, 2019)",
    ),
    "optical": Terms(
        "unclear",
        "DAGM 2007 data set, by Wieler and Hahn (Weakly Supervised Learning for Industrial Optical Inspection, "
        "DAGM Symposium 2007)",
    ),
    "mastcam": Terms(
        "CC BY 4.0",
        "Mastcam multispectral images, by Kerner, Wagstaff, Bue, Wellington, Jacob, Horton, Bell, Kwan and Ben Amor "
        "(Comparison of Novelty Detection Methods for Multispectral Images in Rover-Based Planetary Exploration "
        "Missions, Data Mining and Knowledge Discovery 34, 2020), Zenodo record 3732485, licensed CC BY 4.0",
    ),
}
"""Data set of the paper -> its licence as its makers state it, or as it is usually cited."""

_FOLDERS = {
    "elpv": "elpv",
    "elpvdataset": "elpv",
    "mvtec": "mvtec",
    "mvtecad": "mvtec",
    "mvtecanomalydetection": "mvtec",
    "sdd": "sdd",
    "kolektorsdd": "sdd",
    "aitex": "aitex",
    "dagm": "optical",
    "dagm2007": "optical",
    "mastcam": "mastcam",
}
"""Name of a folder in small letters and digits -> the data set that is taken to be in it; `optical` says too little."""


def terms_of(place: Path) -> Terms:
    """Of the images in a folder. Raises DataError for a licence.yaml that cannot be used."""
    # a manifest above that does not name this folder is of its neighbours
    folders = (place,) if (place.parent / MANIFEST).exists() else (place, place.parent)
    return _written(folders) or _by_name(folders) or _by_text(folders) or Terms()


def licence_in(text: str) -> str | None:
    """The licence of Creative Commons that a text is, names or links to, as `CC BY-NC-SA 4.0`; None for other texts."""
    plain = " ".join(text.split())
    found = re.search(rf"\bAttribution((?:-(?:{'|'.join(_TITLES)}))*) (\d\.\d)\b", plain, re.IGNORECASE)
    if found:
        parts = [_TITLES[part.lower()] for part in found[1].split("-")[1:]]
        return f"CC {'-'.join(['BY', *parts])} {found[2]}"
    found = re.search(r"\bCC[ -](BY(?:-(?:NC|SA|ND))*)[ -](\d\.\d)\b", plain, re.IGNORECASE) or re.search(
        r"creativecommons\.org/licenses/(by(?:-(?:nc|sa|nd))*)/(\d\.\d)", plain, re.IGNORECASE
    )
    if found:
        return f"CC {found[1].upper()} {found[2]}"
    return "CC0 1.0" if re.search(r"\bCC0 1\.0|creativecommons\.org/publicdomain/zero/1\.0", plain) else None


def _written(folders: tuple[Path, ...]) -> Terms | None:
    for folder in folders:
        file = folder / FILE
        with looking_at(file):
            there = file.is_file()
        if there:
            return _read(file)
    return None


def _read(file: Path) -> Terms:
    try:
        content = read_yaml(file)
    except ConfigError as problem:
        raise DataError(str(problem)) from None
    for key, value in content.items():
        if key not in _KEYS:
            raise DataError(f"{file}: unknown key {key!r}; {nearest(str(key), _KEYS)}")
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{file}: {key} holds {value!r}; give a text of one line")
    texts = {key: " ".join(value.split()) for key, value in content.items()}
    return Terms(texts.get("licence", NOT_STATED), texts.get("attribution"))


def _by_name(folders: tuple[Path, ...]) -> Terms | None:
    for folder in folders:
        name = _FOLDERS.get(re.sub(r"[^a-z0-9]", "", folder.name.lower()))
        if name is not None:
            terms = KNOWN[name]
            note = f"{folder}: by its name taken for {name}, {terms.licence}; {FILE} in it can say otherwise"
            return Terms(terms.licence, terms.attribution, (note,))
    return None


def _by_text(folders: tuple[Path, ...]) -> Terms | None:
    """By a licence that lies beside the images; above them one that is not known may be that of something else."""
    for folder in folders:
        for file in _licence_files(folder):
            found = licence_in(_begin(file))
            how = f"what pictures must carry is to be said in {FILE}"
            if found is not None:
                return Terms(found, None, (f"{file} is {found}; {how}",))
            if folder == folders[0]:
                note = f"{file} is no licence that sctune knows; say in {FILE} which one it is"
                return Terms(f"unclear (see {file.name})", None, (note,))
    return None


def _licence_files(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if _TEXTS.fullmatch(file.name) and file.is_file())
    except OSError:
        # who reads the images says so
        return []


def _begin(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(_READ).decode("utf-8", "replace")
    except OSError:
        return ""
