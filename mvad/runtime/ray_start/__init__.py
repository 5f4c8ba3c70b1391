"""Ray on this machine: what of it is started, for whom, and how it ends."""
