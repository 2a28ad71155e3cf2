"""The groups of coupled units of a timm model: found, proved, and what they cost.

They are found by `common.structure.discovery`, which needs torch; what is found does not.
"""

from common.structure.structure import Group, Kind, Member, Structure

__all__ = ["Group", "Kind", "Member", "Structure"]
