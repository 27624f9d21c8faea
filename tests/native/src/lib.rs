//! Native plugins for tests. Some behave and pass the conformance suites; the others each do one thing wrong, which the host
//! must survive.

mod good;
mod rude;
pub mod soft;

taq_plugin::export_plugin! {
    observers: [good::Centred],
    layer_rounders: [
        good::Plain,
        rude::PanicsInCreate,
        rude::PanicsInRound,
        rude::PanicsInDestroy,
        rude::SaysNan,
        rude::TooFew,
        rude::LongError,
        rude::StopsUnasked,
        rude::Stuck,
    ],
    block_rounders: [good::Descent, soft::Soft, rude::WrongRows, rude::OtherThread],
    policies: [good::EightLate],
}
