"""How the next architecture is chosen, one searcher a file; random search is the base line.

A searcher proposes (`ask`) and is told what came of it (`tell`). Its decisions follow from its seed and from what it
was told, in the order in which it asked: so a search that is killed and started again decides the same.
"""

from gossamer.nas.searchers._base import Proposal, Searcher
from gossamer.nas.searchers.darts import DartsSearch, SecondOrderDarts
from gossamer.nas.searchers.evolution import Evolution
from gossamer.nas.searchers.halving import HalvingSearch
from gossamer.nas.searchers.nsga2 import NSGA2Search
from gossamer.nas.searchers.predictor import PredictorSearch
from gossamer.nas.searchers.random import RandomSearch
from gossamer.nas.searchers.tpe import TPESearch

SEARCHERS: dict[str, type[Searcher]] = {
    "random": RandomSearch,
    "evolution": Evolution,
    "predictor": PredictorSearch,
    "halving": HalvingSearch,
    "tpe": TPESearch,
    "nsga2": NSGA2Search,
    "darts": DartsSearch,
    "darts2": SecondOrderDarts,
}

__all__ = [
    "SEARCHERS",
    "DartsSearch",
    "Evolution",
    "HalvingSearch",
    "NSGA2Search",
    "PredictorSearch",
    "Proposal",
    "RandomSearch",
    "Searcher",
    "SecondOrderDarts",
    "TPESearch",
]
