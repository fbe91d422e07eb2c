"""Other people's formats to and from ours: a module per format, each named by a config in conf/source."""
