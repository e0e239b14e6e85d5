"""The configuration, which is installed as the package segdpo.conf: `pkg://segdpo.conf` in `hydra.searchpath`."""
