from .resources import ActorPool as ActorPool
from .resources import actor_pool as actor_pool
from .session import ray_session as ray_session
from .watchdog import as_completed as as_completed
