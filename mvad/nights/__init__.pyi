from .evaluation import evaluate_nights as evaluate_nights
from .rows import list_nights as list_nights
