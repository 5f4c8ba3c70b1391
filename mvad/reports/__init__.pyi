from .nights import report_on_nights as report_on_nights
from .page import read_overview as read_overview
from .page import write_pages as write_pages
