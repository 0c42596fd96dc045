"""Architecture search: networks found for the data and the device at hand.

A `Space` names networks by vectors of whole numbers and builds them. A `Searcher` proposes such vectors and is told
what came of them; random search is the one that all others have to beat. `search` trains what is proposed, times it on
the runtime of the goal, and gives the best network within the limits, trained for longer. The `neighbourhood` of a
trained network is a space, too: its sub-networks share the weights of one once-for-all network.
"""

from gossamer.nas.cells import CellSpace
from gossamer.nas.job import SearchResult, StudyOptions, join_search, search
from gossamer.nas.mobile import MobileSpace
from gossamer.nas.neighbourhood import NeighbourSpace, neighbourhood
from gossamer.nas.plan import SearchPlan
from gossamer.nas.result import Found, front, pick
from gossamer.nas.searchers import (
    SEARCHERS,
    DartsSearch,
    Evolution,
    HalvingSearch,
    PredictorSearch,
    RandomSearch,
    Searcher,
    SecondOrderDarts,
)
from gossamer.nas.space import Genes, Space
from gossamer.nas.zero_cost import ZERO_COST, zero_cost_score

__all__ = [
    "SEARCHERS",
    "ZERO_COST",
    "CellSpace",
    "DartsSearch",
    "Evolution",
    "Found",
    "Genes",
    "HalvingSearch",
    "MobileSpace",
    "NeighbourSpace",
    "PredictorSearch",
    "RandomSearch",
    "SearchPlan",
    "SearchResult",
    "Searcher",
    "SecondOrderDarts",
    "Space",
    "StudyOptions",
    "front",
    "join_search",
    "neighbourhood",
    "pick",
    "search",
    "zero_cost_score",
]
