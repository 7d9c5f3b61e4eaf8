"""What is said of a scene: its things with their places and relations, in words that vary."""

from __future__ import annotations

import numpy as np

from medgraft_blip_nano.scenes import Scene, Thing

_COLUMNS = ("left", "middle", "right")
_ROWS = ("top", "center", "bottom")
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_PLURALS = {"cross": "crosses", "leaf": "leaves", "fish": "fish"}


def _place(thing: Thing, rng: np.random.Generator) -> str:
    column, row = _COLUMNS[thing.column], _ROWS[thing.row]
    if thing.column == 1 and thing.row == 1:
        return str(rng.choice(("in the middle", "in the center", "in the center of the image")))
    if thing.row == 1:
        return str(rng.choice((f"on the {column}", f"on the {column} side", f"at the {column}")))
    if thing.column == 1:
        return str(rng.choice((f"at the {row}", f"near the {row}", f"in the {'upper' if row == 'top' else 'lower'} part")))
    vertical = "upper" if row == "top" else "lower"
    return str(rng.choice((f"in the {vertical} {column} corner", f"at the {row} {column}", f"in the {row} {column}")))


def _name(thing: Thing, rng: np.random.Generator) -> str:
    words = [thing.size] if thing.size != "medium" and rng.random() < 0.8 else []
    words.append(thing.color)
    if thing.texture != "plain" and rng.random() < 0.85:
        words.append(thing.texture)
    if thing.count > 1:
        return " ".join([_NUMBERS[thing.count], *words, _PLURALS.get(thing.shape, thing.shape + "s")])
    phrase = " ".join([*words, thing.shape])
    phrase = ("an " if phrase[0] in "aeiou" else "a ") + phrase
    if thing.inner:
        article = "an" if thing.inner[0] in "aeiou" else "a"
        phrase += str(rng.choice((f" with {article} {thing.inner} inside", f" containing {article} {thing.inner}")))
    return phrase


def _relation(a: Thing, b: Thing, rng: np.random.Generator) -> str:
    if a.column != b.column and (a.row == b.row or rng.random() < 0.5):
        return "to the left of" if a.column < b.column else "to the right of"
    return "above" if a.row < b.row else "below"


def _setting(scene: Scene) -> str:
    kind = {"plain": "", "gradient": "shaded ", "noisy": "grainy ", "striped": "striped ", "cloudy": "cloudy ",
            "landscape": "two-tone ", "vignette": "round "}[scene.background]  # fmt: skip
    return f"on a {kind}{scene.background_color} background"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of many ways to say what the scene shows, lower-case, without a full stop."""
    looks = {"color": ("picture", "image", "photo"), "gray": ("black and white picture", "gray image", "black and white photo"),
             "blurry": ("blurry picture", "blurred image", "soft image"), "noisy": ("noisy picture", "grainy image"),
             "dim": ("dark picture", "dim image"), "bright": ("bright picture", "pale image")}[scene.look]  # fmt: skip
    look = str(rng.choice(looks))
    article = "an" if look[0] in "aeiou" else "a"
    things = scene.things
    names = [_name(thing, rng) for thing in things]
    if len(things) >= 2 and rng.random() < 0.5:
        body = f"{names[0]} {_relation(things[0], things[1], rng)} {names[1]}"
        if len(things) > 2:
            body += f", and {names[2]} {_place(things[2], rng)}"
    else:
        body = " and ".join(f"{name} {_place(thing, rng)}" for name, thing in zip(names, things, strict=True))
    if rng.random() < 0.45:
        body += " " + _setting(scene)
    form = rng.random()
    if form < 0.45 or (scene.look != "color" and form < 0.6):
        return f"{article} {look} of {body}" if scene.look != "color" or rng.random() < 0.5 else body
    if form < 0.75:
        return body
    if form < 0.88:
        return f"there {'are' if things[0].count > 1 else 'is'} {body}"
    return f"this {look.split()[-1]} shows {body}"
