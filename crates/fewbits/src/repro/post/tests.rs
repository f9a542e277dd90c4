//! A small table on the demo network, interrupted and taken up again.

use super::*;
use crate::{demo, progress::Silent};

#[test]
fn rows_keep_the_bytes_and_are_not_repeated() {
    let model = demo::model().unwrap();
    let preprocess = model.preprocess().unwrap().unwrap();
    let (calibration, validation) = (demo::calibration_set(), demo::test_set());
    let source = |dataset, indices| Source { dataset, preprocess: &preprocess, indices };
    let mut table = post_tables().remove(0);
    table.rows.retain(|row| ["uniform, MSE", "ZeroQ-DP", "OFM mixed precision"].contains(&row.name));
    let folder = tempfile::tempdir().unwrap();
    let run = |table: &PostTable, weights: u8, told: &mut usize| {
        let request = PostRequest {
            table,
            model: &model,
            calibration: &source(&calibration, calibration.spread(16)),
            validation: &source(&validation, validation.first(Some(100))),
            target: &"ort".parse().unwrap(),
            weights,
            activations: 8,
            evaluations: 4,
            samples: 8,
            seed: 0,
            threads: 2,
            command: "fewbits repro zero-point",
            out: folder.path(),
        };
        super::run(&request, &Silent, |_| *told += 1)
    };
    let mut told = 0;
    run(&PostTable { rows: vec![], ..table.clone() }, 3, &mut told).unwrap();
    assert!(folder.path().join("results.json").exists(), "the float score is kept at once");
    let first = PostTable { rows: table.rows[..1].to_vec(), ..table.clone() };
    run(&first, 3, &mut told).unwrap();
    let results = run(&table, 3, &mut told).unwrap();
    assert_eq!(told, 3);
    let journal = |row: &PostRow| folder.path().join(format!("{}.search.jsonl", row.search_key()));
    assert!(table.rows[1..].iter().all(|row| journal(row).exists()));
    let lines = results.lines(&table);
    assert_eq!(
        lines.iter().map(|line| line.row.as_str()).collect::<Vec<_>>(),
        ["float", "uniform, MSE", "ZeroQ-DP", "OFM mixed precision"]
    );
    assert!(lines[1..].iter().all(|line| line.bytes <= lines[1].bytes), "{lines:?}");
    let strongest = lines[1].score.max(lines[2].score);
    assert!(lines[3].gain == Some(lines[3].score - strongest) && lines[3].paired.is_some() && lines[1].gain.is_none());
    assert!(run(&table, 4, &mut told).unwrap_err().hint().unwrap().contains("--out"));
}

#[test]
fn rows_share_a_search_only_if_it_is_the_same() {
    let tables = post_tables();
    let key =
        |name: &str| tables.iter().flat_map(|table| &table.rows).find(|row| row.name == name).unwrap().search_key();
    assert_eq!(key("OFM mixed precision"), key("OFM + zero points"));
    for other in ["the same, equalized", "ZeroQ-DP", "RL alone (HAQ)"] {
        assert_ne!(key("OFM mixed precision"), key(other));
    }
    assert_ne!(key("RL alone (HAQ)"), key("RL with mixed clipping inside"));
    let coarse = PostRow { per_channel: false, ..PostRow::default() };
    assert_ne!(coarse.search_key(), PostRow::default().search_key());
}
