"""Captions from facts, worded like figure legends of radiology papers: varied phrasing, negatives, details and length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medgraft.data.phantoms.facts import Facts

_LATERAL = {"left": "left", "right": "right"}
_NEGATIVES = {
    "chest-xray": ("No pleural effusion is seen.", "There is no pneumothorax.", "The heart size is normal."),
    "chest-ct": ("No pleural effusion is seen.", "There is no lymphadenopathy.", "The airways are patent."),
    "abdomen-ct": ("There is no free fluid.", "The spleen is normal.", "No bowel obstruction is seen."),
    "head-ct": ("There is no midline shift.", "The ventricles are normal in size."),
    "brain-mr": ("There is no midline shift.", "The ventricles are normal in size."),
    "abdomen-us": ("No free fluid is seen.", "The bile ducts are not dilated."),
}
_CLASHES = {
    "pleural effusion": "effusion", "pneumothorax": "pneumothorax", "cardiomegaly": "heart", "ascites": "fluid",
}  # fmt: skip
_NORMAL = {
    "chest-xray": ("no acute abnormality", "clear lungs", "normal findings"),
    "chest-ct": ("no focal lesion", "normal findings", "normal lungs"),
    "abdomen-ct": ("no focal lesion", "normal findings", "normal liver and kidneys"),
    "head-ct": ("no haemorrhage", "normal findings", "no intracranial abnormality"),
    "brain-mr": ("no focal lesion", "normal findings", "a normal brain"),
    "abdomen-us": ("normal findings", "no focal lesion", "normal echogenicity"),
}


def write_caption(facts: Facts, rng: np.random.Generator) -> str:
    """A caption of what is shown, sometimes with the patient's age, an arrow and a negative."""
    study = _study(facts, rng)
    body = describe_finding(facts, rng)
    if facts.arrow:
        body += pick(rng, (" (arrow)", " (white arrow)", " (arrow)"))
    patient = ""
    if rng.random() < 0.1:
        patient = f" of a {int(rng.integers(21, 88))}-year-old {pick(rng, ('man', 'woman', 'patient'))}"
    form = rng.random()
    if form < 0.5:
        sentence = f"{study}{patient} {pick(rng, ('showing', 'shows', 'demonstrating', 'demonstrates', 'revealing'))} {body}."
    elif form < 0.65:
        sentence = f"{study}{patient} with {body}."
    elif form < 0.8:
        sentence = f"{study}{patient}: {body}."
    elif facts.finding is None:
        sentence = f"Normal {study[0].lower() + study[1:] if study[1:2].islower() else study}."
    else:
        sentence = f"{body[0].upper() + body[1:]} on {study[0].lower() + study[1:] if study[1:2].islower() else study}."
    if rng.random() < 0.25:
        options = [n for n in _NEGATIVES[facts.study] if _CLASHES.get(facts.finding or "", "-") not in n.lower()]
        sentence += " " + pick(rng, options)
    return sentence


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def _study(facts: Facts, rng: np.random.Generator) -> str:
    if facts.study == "chest-xray":
        view = {"PA": ("posteroanterior ", "PA ", ""), "AP": ("anteroposterior ", "AP ", "portable ")}[facts.view]
        text = pick(rng, view) + pick(rng, ("chest X-ray", "chest radiograph", "chest X-ray"))
    elif facts.study in ("chest-ct", "abdomen-ct", "head-ct"):
        region = {"chest-ct": "chest", "abdomen-ct": "abdomen", "head-ct": "head"}[facts.study]
        ct = pick(rng, ("CT", "computed tomography", "CT scan"))
        text = pick(rng, (f"axial {ct} of the {region}", f"{region} {ct}", f"axial {region} {ct}"))
        if facts.study == "head-ct" and rng.random() < 0.4:
            text = pick(rng, ("non-contrast ", "unenhanced ")) + text
        if facts.contrast == "portal venous phase" and rng.random() < 0.5:
            text = "contrast-enhanced " + text
        if facts.contrast in ("lung window", "mediastinal window") and rng.random() < 0.4:
            text += f" in {facts.contrast}"
    elif facts.study == "brain-mr":
        mri = pick(rng, ("MRI", "magnetic resonance imaging", "MR image"))
        text = pick(rng, (f"{facts.view} {facts.contrast} {mri} of the brain", f"{facts.contrast} {facts.view} brain {mri}"))
    else:
        text = pick(rng, ("abdominal ultrasound", "ultrasound of the abdomen", "abdominal ultrasonography"))
    return text if text[0].isupper() else text[0].upper() + text[1:]


def describe_finding(facts: Facts, rng: np.random.Generator) -> str:
    """The finding with its article, place and sometimes size, or that there is none, such as "normal findings"."""
    if facts.finding is None:
        return pick(rng, _NORMAL[facts.study])
    name = _name(facts, rng)
    size = f"{facts.size_mm} mm " if facts.size_mm and rng.random() < 0.3 else _adjective(facts, rng)
    noun = size + name
    article = "" if facts.finding in ("ascites", "cardiomegaly", "consolidation") else "an " if noun[0] in "aeiou" else "a "
    if noun.startswith(("8 ", "11 ", "18 ", "80")):
        article = "an "
    return f"{article}{noun}{_where(facts, rng)}"


def _name(facts: Facts, rng: np.random.Generator) -> str:
    side = facts.side
    names: dict[str, tuple[str, ...]] = {
        "nodule": ("nodule", "pulmonary nodule", "nodular opacity"),
        "mass": ("mass", "mass lesion", "solid mass"),
        "consolidation": ("consolidation", "airspace consolidation", "patchy consolidation"),
        "pleural effusion": (f"{side}-sided pleural effusion", f"{side} pleural effusion"),
        "pneumothorax": (f"{side}-sided pneumothorax", f"{side} pneumothorax"),
        "cardiomegaly": ("cardiomegaly", "marked cardiomegaly", "enlargement of the heart"),
        "clavicle fracture": (f"displaced fracture of the {side} clavicle", f"fracture of the {side} clavicle"),
        "cyst": ("cyst", "simple cyst", "cystic lesion"),
        "stone": ("stone", "calculus"),
        "gallstone": ("gallstone", "stone in the gallbladder", "calculus in the gallbladder"),
        "ascites": ("ascites", "free fluid", "ascites around the liver and spleen"),
        "haemorrhage": ("haemorrhage", "intracerebral haemorrhage", "haematoma"),
        "infarct": ("infarct", "ischaemic infarct", "infarction"),
        "subdural haematoma": (f"{side}-sided subdural haematoma", f"{side} subdural haematoma"),
        "skull fracture": ("skull fracture", "fracture of the skull"),
        "tumour": ("tumour", "mass with surrounding oedema", "tumour with oedema"),
    }
    return pick(rng, names[facts.finding or "mass"])


def _adjective(facts: Facts, rng: np.random.Generator) -> str:
    if rng.random() < 0.55:
        return ""
    if facts.study in ("chest-ct", "abdomen-ct", "head-ct"):
        tone = {"haemorrhage": "hyperdense ", "infarct": "hypodense ", "cyst": "hypodense ", "stone": "hyperdense "}
        return tone.get(facts.finding or "", "")
    if facts.study == "brain-mr":
        if facts.finding == "cyst":
            return "hyperintense " if facts.contrast == "T2-weighted" else "hypointense "
        return "hypointense " if facts.contrast == "T1-weighted" else "hyperintense "
    if facts.study == "abdomen-us":
        return {"cyst": "anechoic ", "mass": "hyperechoic "}.get(facts.finding or "", "echogenic ")
    if facts.finding in ("nodule", "mass"):
        return pick(rng, ("well-defined ", "large " if facts.finding == "mass" else "small "))
    return ""


def _where(facts: Facts, rng: np.random.Generator) -> str:
    side, site = facts.side, facts.site
    if site in ("upper", "middle", "lower"):
        where = f"{side} {site} lobe" if site != "middle" else "right middle lobe"
        return pick(rng, (f" in the {where}", f" of the {where}"))
    if site in ("anterior", "posterior"):
        return pick(rng, (f" in the {site} {side} lung", f" in the {site} part of the {side} lung"))
    if site in ("frontal", "parietal", "occipital"):
        if facts.finding == "skull fracture":
            return f" of the {side} {site} bone"
        return f" in the {side + ' ' if side else ''}{site} lobe"
    if site == "cerebellum":
        return " in the cerebellum"
    if site in ("liver", "kidney"):
        return f" in the {side + ' ' if side else ''}{site}"
    return ""
