//! One scan: entropy-coded bits enter, coefficients of the frame are filled in.

use super::{
    Component, Frame, JpegError, State, ZIGZAG,
    huffman::{Bits, Table},
};

/// What a scan carries: coefficients `first ..= last`, from bit `low` on; `refine`: one more bit of what is known.
struct Band {
    progressive: bool,
    first: usize,
    last: usize,
    refine: bool,
    low: u32,
}

/// Decodes one scan; returns the number of bytes that it took.
pub(super) fn decode(frame: &mut Frame, state: &State, header: &[u8], data: &[u8]) -> Result<usize, JpegError> {
    let corrupt = JpegError::Corrupt("scan header");
    let (&count, rest) = header.split_first().ok_or(JpegError::Truncated)?;
    let (entries, tail) = rest.split_at_checked(2 * usize::from(count)).ok_or(JpegError::Truncated)?;
    let &[first, last, bits, ..] = tail else { return Err(JpegError::Truncated) };
    let progressive = frame.progressive;
    let band = if progressive {
        Band { progressive, first: first.into(), last: last.into(), refine: bits >> 4 != 0, low: u32::from(bits & 15) }
    } else {
        Band { progressive, first: 0, last: 63, refine: false, low: 0 }
    };
    let dc_only = band.first == 0 && band.last == 0;
    if band.last > 63 || band.first > band.last || band.low > 13 || (progressive && band.first == 0 && !dc_only) {
        return Err(corrupt);
    }
    let mut parts = Vec::new();
    for entry in entries.as_chunks::<2>().0 {
        let index = frame.components.iter().position(|c| c.id == entry[0]).ok_or(corrupt.clone())?;
        let table = |set: &'_ [Option<Table>; 4], slot: u8| set.get(usize::from(slot)).is_some_and(Option::is_some);
        let needs_dc = band.first == 0 && !band.refine;
        let needs_ac = band.last > 0;
        if (needs_dc && !table(&state.dc, entry[1] >> 4)) || (needs_ac && !table(&state.ac, entry[1] & 15)) {
            return Err(JpegError::Corrupt("Huffman table"));
        }
        let component = &mut frame.components[index];
        if component.quant.is_none() {
            component.quant = Some(state.quant[component.quant_index].ok_or(JpegError::Corrupt("quantization table"))?);
        }
        parts.push((index, state.dc.get(usize::from(entry[1] >> 4)), state.ac.get(usize::from(entry[1] & 15))));
    }
    if parts.is_empty() || parts.len() > 3 || (band.progressive && band.first > 0 && parts.len() > 1) {
        return Err(corrupt);
    }

    let mut bits = Bits::new(data);
    let mut previous_dc = [0i32; 3];
    let mut blocks_at_end = 0u32;
    // A scan of one component has its blocks row by row; a scan of several has them MCU by MCU.
    let single = parts.len() == 1;
    let (units_wide, units_high) = if single {
        let component = &frame.components[parts[0].0];
        (component.width.div_ceil(8), component.height.div_ceil(8))
    } else {
        (frame.mcus_wide, frame.mcus_high)
    };
    for unit in 0..units_wide * units_high {
        if state.restart_interval > 0 && unit > 0 && unit % state.restart_interval == 0 {
            bits.restart()?;
            (previous_dc, blocks_at_end) = ([0; 3], 0);
        }
        let (row, column) = (unit / units_wide, unit % units_wide);
        for (part, &(index, dc, ac)) in parts.iter().enumerate() {
            let component = &mut frame.components[index];
            let (h, v) = if single { (1, 1) } else { (component.h, component.v) };
            for place in 0..h * v {
                let block = block_at(component, row * v + place / h, column * h + place % h);
                let dc = dc.and_then(Option::as_ref);
                let ac = ac.and_then(Option::as_ref);
                if band.first == 0 {
                    if band.refine {
                        block[0] |= (bits.take(1)? << band.low) as i16;
                    } else {
                        let size = bits.symbol(dc.ok_or(JpegError::Corrupt("Huffman table"))?)?;
                        let difference = bits.take_signed(u32::from(size).min(16))?;
                        previous_dc[part] = previous_dc[part].wrapping_add(difference);
                        block[0] = (previous_dc[part] << band.low) as i16;
                    }
                }
                if band.last > 0 {
                    let ac = ac.ok_or(JpegError::Corrupt("Huffman table"))?;
                    if band.refine {
                        refine_ac(block, &mut bits, ac, &band, &mut blocks_at_end)?;
                    } else {
                        first_ac(block, &mut bits, ac, &band, &mut blocks_at_end)?;
                    }
                }
            }
        }
    }
    Ok(bits.position())
}

fn block_at(component: &mut Component, row: usize, column: usize) -> &mut [i16; 64] {
    &mut component.coefficients[row * component.blocks_wide + column]
}

/// The AC coefficients of a block, or their upper bits.
fn first_ac(
    block: &mut [i16; 64],
    bits: &mut Bits<'_>,
    table: &Table,
    band: &Band,
    blocks_at_end: &mut u32,
) -> Result<(), JpegError> {
    if *blocks_at_end > 0 {
        *blocks_at_end -= 1;
        return Ok(());
    }
    let mut k = band.first.max(1);
    while k <= band.last {
        let symbol = bits.symbol(table)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if run == 15 {
                k += 16;
                continue;
            }
            if band.progressive {
                *blocks_at_end = (1 << run) - 1 + bits.take(run as u32)? as u32;
            }
            break;
        }
        k += run;
        let place = ZIGZAG.get(k).ok_or(JpegError::Corrupt("data"))?;
        block[usize::from(*place)] = (bits.take_signed(size)? << band.low) as i16;
        k += 1;
    }
    Ok(())
}

/// One more bit of the AC coefficients of a block: known ones are corrected, new ones appear with size 1.
fn refine_ac(
    block: &mut [i16; 64],
    bits: &mut Bits<'_>,
    table: &Table,
    band: &Band,
    blocks_at_end: &mut u32,
) -> Result<(), JpegError> {
    let one = 1i16 << band.low;
    let mut k = band.first;
    if *blocks_at_end == 0 {
        while k <= band.last {
            let symbol = bits.symbol(table)?;
            let (mut run, size) = (symbol >> 4, symbol & 15);
            let mut new = 0;
            if size == 0 {
                if run < 15 {
                    *blocks_at_end = (1 << run) + bits.take(run.into())? as u32;
                    break;
                }
            } else {
                new = if bits.take(1)? == 1 { one } else { -one };
            }
            while k <= band.last {
                let coefficient = &mut block[usize::from(ZIGZAG[k])];
                k += 1;
                if *coefficient != 0 {
                    correct(coefficient, bits, one)?;
                } else if run == 0 {
                    *coefficient = new;
                    break;
                } else {
                    run -= 1;
                }
            }
        }
    }
    if *blocks_at_end > 0 {
        for &place in &ZIGZAG[k..=band.last] {
            if block[usize::from(place)] != 0 {
                correct(&mut block[usize::from(place)], bits, one)?;
            }
        }
        *blocks_at_end -= 1;
    }
    Ok(())
}

/// Reads a correction bit of a known coefficient and moves it away from zero if it is set.
fn correct(coefficient: &mut i16, bits: &mut Bits<'_>, one: i16) -> Result<(), JpegError> {
    if bits.take(1)? == 1 && *coefficient & one == 0 {
        *coefficient = coefficient.wrapping_add(if *coefficient > 0 { one } else { -one });
    }
    Ok(())
}
