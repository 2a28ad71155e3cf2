"""The groups of coupled units of a timm model: found, proved, and what they cost."""

from common.structure.discovery import discover
from common.structure.structure import Group, Kind, Member, Structure

__all__ = ["Group", "Kind", "Member", "Structure", "discover"]
