from .assign import MixedDump as MixedDump
from .jobs import ScoringJob as ScoringJob
from .jobs import decision_rule as decision_rule
from .jobs import ignore_remarks as ignore_remarks
from .jobs import scoring_jobs as scoring_jobs
from .score import prepare_networks as prepare_networks
from .score import score_images as score_images
