"""Model names: the one name that timm has for a model, however a user or a hub writes it."""

from __future__ import annotations

import difflib
import re

import timm

from common.errors import UnsupportedModel

TIMM_ON_THE_HUB = re.compile(r"(?:hf[-_]hub:)?timm/", re.IGNORECASE)
"""What stands before a name of timm's where its repository on the Hugging Face hub is meant."""


def timm_name(name: str) -> str:
    """The model's name as timm lists it, with its tag if it has one: `hf-hub:timm/NAME` is NAME.

    Raises UnsupportedModel, with similar names, for a model or a tag that timm does not have, and for
    repositories of others and directories: nothing is fetched or read to find out what a name means.
    """
    plain = without_hub(name)
    architecture, _, tag = plain.partition(".")
    if not timm.is_model(architecture):
        raise UnsupportedModel(_why_unknown(name, plain))
    try:
        timm.get_pretrained_cfg(plain)
    except RuntimeError as error:
        known = timm.list_models(architecture, include_tags=True)
        near = difflib.get_close_matches(plain.lower(), known, n=3, cutoff=0)
        raise UnsupportedModel(
            f"timm {timm.__version__} has no model {name!r}: {architecture} has no weights {tag!r}; "
            f"did you mean {', '.join(near)}?"
        ) from error
    return plain


def without_hub(name: str) -> str:
    """The name without what says that it is one of timm's repositories on the hub."""
    return name[found.end() :] if (found := TIMM_ON_THE_HUB.match(name)) else name


def did_you_mean(name: str) -> str:
    """A question that names up to three similar models, or where all of them are listed."""
    names = timm.list_models()
    names += timm.list_models(include_tags=True)
    near = difflib.get_close_matches(name.lower(), dict.fromkeys(names), n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"


def _why_unknown(name: str, plain: str) -> str:
    source, _, place = plain.rpartition(":")
    owner, _, last = place.rpartition("/")
    if source.lower() == "local-dir":
        return (
            f"{name!r} is a directory; give the name of a timm model, and its weights with --checkpoint"
        )
    if owner and "/" not in owner:
        return (
            f"{name!r} is a repository of {owner}, not of timm; give the timm model that it holds "
            f"({did_you_mean(last)}), and its weights with --checkpoint"
        )
    return f"timm {timm.__version__} has no model {name!r}; {did_you_mean(last)}"
