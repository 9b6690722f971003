"""Problems that placing is learned from once and for all: graphs made of modules, on clusters that exist."""
