//! fewbits-graph
