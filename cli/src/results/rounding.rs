//! How rounding went.

use taq_core::LOSS_STRIDE;
use taq_core::pipeline::BlockMetrics;

/// The rounder's name.
pub(crate) fn rounder(identity: &serde_json::Value) -> String {
    identity.get("name").and_then(|n| n.as_str()).unwrap_or("a rounder").to_owned()
}

/// Iteration and loss; `None` where nothing was learned.
pub(crate) fn curve(block: &BlockMetrics) -> Option<Vec<(f64, f64)>> {
    let losses = &block.loss_history_stride100;
    let points = losses.iter().enumerate().map(|(i, &loss)| ((i * LOSS_STRIDE) as f64, f64::from(loss)));
    (!losses.is_empty()).then(|| points.collect())
}

/// `−34 %`
pub(crate) fn change(from: f64, to: f64) -> String {
    let percent = if from > 0.0 { (to / from - 1.0) * 100.0 } else { 0.0 };
    format!("{}{:.0} %", if percent.round() < 0.0 { "−" } else { "+" }, percent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_stand_at_their_iterations() {
        let mut block = BlockMetrics {
            block_name: "mm0".into(),
            layers: Default::default(),
            nearest_loss: Some(1.0),
            final_loss: Some(0.5),
            loss_history_stride100: vec![0.5, 0.25, 0.125],
        };
        assert_eq!(curve(&block).unwrap(), [(0.0, 0.5), (100.0, 0.25), (200.0, 0.125)]);
        block.loss_history_stride100.clear();
        assert_eq!(curve(&block), None);
    }

    #[test]
    fn changes_have_a_sign() {
        assert_eq!(change(2.0, 1.3), "−35 %");
        assert_eq!(change(2.0, 2.5), "+25 %");
        assert_eq!(change(0.0, 0.0), "+0 %");
    }
}
