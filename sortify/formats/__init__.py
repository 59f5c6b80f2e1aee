"""An extracted sub-network as files that need no sortify, checked by running them; and several with an index."""
