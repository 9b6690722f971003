"""Co-location groups: which ops share a device, and coarser and finer units of them."""

from graphs.colocation.groups import Groups, make_groups, one_group_an_op
from graphs.colocation.rules import colocate

__all__ = ["Groups", "colocate", "make_groups", "one_group_an_op"]
