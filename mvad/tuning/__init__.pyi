from .record import candidate_rows as candidate_rows
from .tune import fit_each as fit_each
from .tune import tune_jobs as tune_jobs
