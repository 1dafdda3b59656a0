"""The `re:vision` splits of LAION-fMRI: JSON files of names of images, as named splits."""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ubrain.crowd import reading
from ubrain.data.importers.layouts import check_choice, layout
from ubrain.data.importers.read import Folder, check_size
from ubrain.data.importers.recording import ImageFiles
from ubrain.errors import UbrainError

LAION = layout("laion")


class Splits:
    """All splits of a folder {shared,pooled,sub-XX}/NAME.json, wherever it lies.

    Attributes
    ----------
    files : train or test by name of the image, by name of the split and whose file it is: of a
        subject, "shared" or "pooled".
    digests : SHA-256 of each file, by NAME-OWNER.
    """

    def __init__(self, folder: Folder) -> None:
        self.files: dict[str, dict[str, dict[str, str]]] = {}
        self.digests: dict[str, str] = {}
        for path in folder.search(rf"(?:{LAION.splits})\.json"):
            name, owner = path.stem.lower(), path.parent.name.lower()
            if not re.fullmatch(r"shared|pooled|sub-\d+", owner):
                continue
            if owner in self.files.setdefault(name, {}):
                raise UbrainError(
                    f"{folder}: {owner}/{path.name} is there twice, once in {path.parent.parent};"
                    " name the right folder with --splits"
                )
            split, self.digests[f"{name}-{owner}"] = _read(path)
            self.files[name][owner] = split

    def schemes(
        self, ids: Sequence[str], subjects: Collection[str]
    ) -> tuple[dict[str, list[str]], list[str]]:
        """Named splits of some images, and what is said about them.

        NAME-OWNER is one file. NAME is what the files of all subjects and the pooled one say
        together; an image on which they disagree is in none.
        """
        found, said, names = dict[str, list[str]](), list[str](), set(ids)
        for name, files in self.files.items():
            for owner, split in files.items():
                if owner in subjects or not owner.startswith("sub-"):
                    found[f"{name}-{owner}"] = [split.get(i, "") for i in ids]
            joined = [split for owner, split in files.items() if owner != "shared"]
            votes = [{s[i] for s in joined or files.values() if i in s} for i in ids]
            found[name] = [min(v) if len(v) == 1 else "" for v in votes]
            own = {i for owner, split in files.items() if owner in subjects for i in split}
            said.append(
                f"Named split {name}, of {len(files)} files: on {sum(len(v) > 1 for v in votes)}"
                f" images they disagree, which are in none; {len(own - names)} names in these"
                " subjects' files are of no image here"
            )
        if found:
            listed = json.dumps(self.digests, sort_keys=True).encode()
            said.append(
                f"The settings have the SHA-256 of these {len(self.digests)} files; that of the"
                f" list is {hashlib.sha256(listed).hexdigest()}"
            )
        return found, said

    def give(self, images: ImageFiles, subjects: Collection[str], chosen: str | None) -> list[str]:
        """Give images their splits, that of the crowd file too; returns what is said about them."""
        images.schemes, said = self.schemes(images.ids, subjects)
        chosen = chosen or ("tau" if "tau" in images.schemes else "shared")
        check_choice("split", chosen, ["shared", *images.schemes])
        if chosen == "shared":
            test = [name.lower().startswith("shared_") for name in images.ids]
            first = "Test images: those that were shown to all subjects, as their names say"
        else:
            test = [word == "test" for word in images.schemes[chosen]]
            first = (
                f"Test images: those of the published split {chosen}; the"
                f" {list(images.schemes[chosen]).count('')} images that are in none of it count as"
                " its training images"
            )
        images.splits = ["test" if t else "rest" for t in test]
        return [first, *said]


def _read(path: Path) -> tuple[dict[str, str], str]:
    """Train or test by name of the image, and the SHA-256 of the file."""
    with reading(path, "a split as JSON"):
        check_size(path.stat().st_size, LAION.max_split, path)
        data = path.read_bytes()
        content = json.loads(data)
        (variant,) = content["variants"]
        ids: dict[str, list[str]] = {word: variant[f"{word}_ids"] for word in ("train", "test")}
        for word, names in ids.items():
            if not names or not all(isinstance(name, str) for name in names):
                raise UbrainError(f"{path}: {word}_ids: expected names of images")
            if len(names) != content.get(f"n_{word}", len(names)) or len({*names}) < len(names):
                raise UbrainError(f"{path}: {word}_ids: expected n_{word} different names")
        if both := {*ids["train"]} & {*ids["test"]}:
            raise UbrainError(f"{path}: {min(both)[:100]!r} is in train_ids and in test_ids")
    split = {name: word for word, names in ids.items() for name in names}
    return split, hashlib.sha256(data).hexdigest()
