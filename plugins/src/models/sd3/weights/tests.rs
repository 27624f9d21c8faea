//! Every way in which weights can be wrong, and the layouts.
