from .bit_depths import measure_bit_depths as measure_bit_depths
from .dataset import decoded_images as decoded_images
from .dataset import extract_features as extract_features
from .job import job_session as job_session
