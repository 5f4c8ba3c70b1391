from .nights import night_folder as night_folder
from .watch import Watch as Watch
