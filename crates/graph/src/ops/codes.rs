//! How the codes of a quantized activation are held in memory: always as `u8`. Codes of signed grids are stored as `q + 128`,
//! with the zero point moved likewise (ONNX Runtime rewrites signed activations the same way on x64).

use crate::grid::QuantParams;
use fewbits_kernels::int::GridParams;

/// The per-tensor grid of an activation as its stored `u8` codes see it; `None` for per-channel grids and grids wider than 8 bits.
pub fn stored(params: &QuantParams) -> Option<GridParams> {
    let (scale, zero) = params.tensor_params()?;
    let shift = if params.grid.signed { 128 } else { 0 };
    let grid =
        GridParams { scale, zero: zero + shift, qmin: params.grid.qmin() + shift, qmax: params.grid.qmax() + shift };
    (params.grid.bits <= 8 && (0..=255).contains(&grid.zero)).then_some(grid)
}
