"""From runs to effects with intervals."""
