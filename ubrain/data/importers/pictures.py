"""Pictures that their owners hand out apart from the responses: found by name, wherever they lie
in a folder.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ubrain.data.importers.read import SUFFIXES, Folder, spellings
from ubrain.errors import UbrainError


class Pictures:
    """Some pictures of a folder, by name; upper and lower case are the same.

    Parameters
    ----------
    folder : with subfolders. Other pictures may be there, even all of ImageNet.
    names : all that will be looked for, with or without suffixes.
    """

    def __init__(self, folder: Folder, names: Iterable[str]) -> None:
        self.folder = folder
        self._files: dict[str, list[Path]] = {}
        for path in folder.pictures({spelling for name in names for spelling in spellings(name)}):
            for spelling in spellings(path.name):
                self._files.setdefault(spelling, []).append(path)

    def find(self, *names: str, prefer: Sequence[str] = ()) -> Path | None:
        """The picture that has the first of these names, with or without its suffix; None if there
        is none.

        Parameters
        ----------
        prefer : names of folders; if there are several such pictures, one below such a folder is
            meant.

        Raises
        ------
        UbrainError
            If it is not clear which of several is meant.
        """
        for name in names:
            found = self._files.get(name.lower()) or self._files.get(Path(name).stem.lower(), [])
            if len(found) > 1:
                folders = {folder.lower() for folder in prefer}
                found = [
                    p for p in found if folders & {part.lower() for part in p.parent.parts}
                ] or found
            if len(found) > 1:
                raise UbrainError(
                    f"{self.folder}: {name!r} is there twice, as {self.folder.name(found[0])} and"
                    f" as {self.folder.name(found[1])}; name the right folder with --images"
                )
            if found:
                return found[0]
        return None


def photograph_key(name: str) -> str:
    """Name of a photograph in a public collection, from the name of its file: "coco:420713",
    "imagenet:n01443537_22563".

    Empty if the name is not one of theirs. COCO's are 000000420713.jpg (2017) and
    COCO_train2014_000000420713.jpg (2014).
    """
    stem = Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name
    if coco := re.fullmatch(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})", stem, re.IGNORECASE):
        return f"coco:{int(coco[1])}"
    if imagenet := re.fullmatch(r"n(\d{8})_(\d+)", stem, re.IGNORECASE):
        return f"imagenet:n{imagenet[1]}_{int(imagenet[2])}"
    return ""
