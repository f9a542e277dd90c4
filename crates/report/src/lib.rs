//! fewbits-report
