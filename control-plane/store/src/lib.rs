//! Commands, the state they change and who watches it, without I/O.
