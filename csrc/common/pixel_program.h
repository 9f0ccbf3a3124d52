// Pixel programs, decoded: `pygen/program.py` says what they are, and has the messages for what is refused here.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace pygen::program {

enum class Phase : int { kRow, kPixel, kHead };
enum class Activation : int { kNone, kRelu, kElu, kGate, kGlu, kConcatElu };
enum class Head : int { kCategorical, kMixture };

constexpr int64_t kPanel = 32;                          // columns of a weight that lie together
constexpr double kMostKept = double(int64_t(1) << 33);  // numbers of an image in all planes

struct Plane {
  int64_t channels, scale;
  // derived: the grid, the rows that are kept of it at once, the columns of zeros beside it that reads may meet
  int64_t height = 0, width = 0, rows = 1, left = 0, right = 0;
  bool transient = true;  // nothing but stages of the same pixel reads it
};

struct Read {
  int64_t plane, dy, dx, first, count;
};

struct Stage {  // the order of pygen/program.py
  int64_t out, first, outputs, weight, bias, condition, start, start_first, activation, residual, residual_first, phase,
      group, row_every, row_at, column_every, column_at;
  std::vector<Read> reads;

  Activation activates() const { return Activation(activation); }
  Phase when() const { return Phase(phase); }
  bool gated() const { return activates() == Activation::kGate || activates() == Activation::kGlu; }
  int64_t written() const {
    return gated() ? outputs / 2 : activates() == Activation::kConcatElu ? 2 * outputs : outputs;
  }
  int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
  int64_t depth() const {
    int64_t sum = 0;
    for (const Read& read : reads) sum += read.count;
    return sum;
  }
};

struct Program {
  int64_t height, width, channels, levels, groups, head, mixtures, layout, output, tensors, conditions;
  std::vector<Plane> planes;
  std::vector<Stage> stages;

  Head draws_from() const { return Head(head); }
  int64_t draws() const { return channels + (draws_from() == Head::kMixture ? 1 : 0); }  // numbers for a pixel
  int64_t head_channels() const {
    return draws_from() == Head::kCategorical ? levels : mixtures * (1 + 2 * channels + channels * (channels - 1) / 2);
  }
};

namespace detail {

constexpr int64_t kLargest = int64_t(1) << 31;  // of any number in a program: sums of a few never overflow

inline bool within(int64_t first, int64_t count, int64_t end) {
  return first >= 0 && count >= 1 && first + count <= end;
}

using Writers = std::vector<std::vector<size_t>>;  // the stages that write a plane

// Whether what a stage reads is there by then, as Program._known in pygen/program.py.
inline bool known(const Program& p, const Writers& writers, size_t index, const Read& r) {
  const Stage& s = p.stages[index];
  const int64_t scale = p.planes[size_t(r.plane)].scale;
  const bool above = (s.row_at / scale + r.dy) * scale < s.row_at;
  const int64_t column = (s.column_at / scale + r.dx) * scale;
  if (r.plane == 0) {
    const bool drawn = column < s.column_at || (column == s.column_at && r.first + r.count <= s.group);
    const bool ones = r.first >= p.channels;
    return above || (s.when() != Phase::kRow && (drawn || (ones && column <= s.column_at)));
  }
  for (const size_t i : writers[size_t(r.plane)]) {
    const Stage& writer = p.stages[i];
    if (writer.first >= r.first + r.count || r.first >= writer.first + writer.written()) continue;
    if (writer.when() == Phase::kHead) {
      const bool here = r.dy == 0 && r.dx == 0 && writer.group == s.group;
      if (!here || s.when() != Phase::kHead || i >= index) return false;
    }
    if (above) continue;
    if (i >= index) return false;
    if (writer.when() == Phase::kRow) continue;
    const bool before = column < s.column_at || (column == s.column_at && writer.group <= s.group);
    if (s.when() == Phase::kRow || !before) return false;
  }
  return true;
}

// What needs no look at other stages.
inline bool sound(const Program& p, const Stage& s) {
  const auto is_plane = [&](int64_t i) { return i >= 0 && i < int64_t(p.planes.size()); };
  if (s.out < 1 || !is_plane(s.out) || s.activation < 0 || s.activation > int64_t(Activation::kConcatElu)) return false;
  if (s.outputs < 1 || (s.gated() && s.outputs % 2) || s.phase < 0 || s.phase > int64_t(Phase::kHead)) return false;
  if (s.group < 0 || s.group >= p.groups) return false;
  const Plane& out = p.planes[size_t(s.out)];
  const auto beside = [&](int64_t plane, int64_t first, int64_t count) {
    if (plane == -1) return true;
    return is_plane(plane) && p.planes[size_t(plane)].scale == out.scale &&
           within(first, count, p.planes[size_t(plane)].channels);
  };
  if (!beside(s.out, s.first, s.written()) || !beside(s.start, s.start_first, s.outputs)) return false;
  if (!beside(s.residual, s.residual_first, s.written())) return false;
  if (s.weight < -1 || s.weight >= p.tensors || s.bias < -1 || s.bias >= p.tensors) return false;
  if (s.condition < -1 || s.condition >= p.conditions || (s.weight >= 0) == s.reads.empty()) return false;
  for (const auto& [every, at] : {std::pair{s.row_every, s.row_at}, std::pair{s.column_every, s.column_at}}) {
    if (at < 0 || at >= every || every % out.scale || at % out.scale) return false;
  }
  return true;
}

inline bool admits(const Program& p, const Writers& writers, size_t index) {
  const Stage& s = p.stages[index];
  const auto is_plane = [&](int64_t i) { return i >= 0 && i < int64_t(p.planes.size()); };
  for (const Read& r : s.reads) {
    if (!is_plane(r.plane)) return false;
    const Plane& from = p.planes[size_t(r.plane)];
    if (!within(r.first, r.count, from.channels) || s.row_every % from.scale || s.column_every % from.scale)
      return false;
    if (r.dy > 0 || !known(p, writers, index, r)) return false;
  }
  return (s.start < 0 || known(p, writers, index, {s.start, 0, 0, s.start_first, s.outputs})) &&
         (s.residual < 0 || known(p, writers, index, {s.residual, 0, 0, s.residual_first, s.written()}));
}

// Numbers that are kept of an image.
inline double kept(const Program& p) {
  double sum = 0;
  for (const Plane& plane : p.planes) {
    sum += double(plane.rows) * double(plane.left + plane.width + plane.right) * double(plane.channels);
  }
  return sum;
}

inline void derive(Program& p) {
  for (Plane& plane : p.planes) {
    plane.height = (p.height + plane.scale - 1) / plane.scale;
    plane.width = (p.width + plane.scale - 1) / plane.scale;
  }
  p.planes[0].transient = false;
  for (Stage& s : p.stages) {
    const auto aligned = [&](Plane& plane) {
      const bool everywhere = s.row_every == plane.scale && s.column_every == plane.scale && !s.row_at && !s.column_at;
      if (!everywhere || s.when() == Phase::kRow) plane.transient = false;
    };
    for (const int64_t i : {s.out, s.start, s.residual}) {
      if (i >= 0) aligned(p.planes[size_t(i)]);
    }
    for (Read& r : s.reads) {
      Plane& from = p.planes[size_t(r.plane)];
      r.dy = std::max(r.dy, -from.height);  // what is outside stays outside
      r.dx = std::clamp(r.dx, -from.width, from.width);
      aligned(from);
      if (r.dy || r.dx) from.transient = false;
      const int64_t last = s.column_at + (p.width - 1 - s.column_at) / s.column_every * s.column_every;
      if (last < 0) continue;
      from.rows = std::max(from.rows, 1 - r.dy);
      from.left = std::max(from.left, -(s.column_at / from.scale + r.dx));
      from.right = std::max(from.right, last / from.scale + r.dx + 1 - from.width);
    }
  }
}

}  // namespace detail

// Nothing for anything that pygen/program.py: Program.decode raises for.
inline std::optional<Program> decode(const int64_t* words, int64_t count) {
  int64_t at = 0;
  bool whole = true;
  const auto next = [&] {
    if (at >= count || words[at] >= detail::kLargest || words[at] <= -detail::kLargest) {
      whole = false;
      return int64_t(-1);
    }
    return words[at++];
  };
  Program p;
  if (next() != 1) return {};
  for (int64_t* number : {&p.height, &p.width, &p.channels, &p.levels, &p.groups, &p.head, &p.mixtures, &p.layout,
                          &p.output, &p.tensors, &p.conditions}) {
    *number = next();
  }
  const int64_t planes = next(), stages = next();
  if (!whole || p.height < 1 || p.width < 1 || p.channels < 1 || p.mixtures < 1 || p.levels < 2 || p.levels > 65536) {
    return {};
  }
  if (p.head < 0 || p.head > 1 || p.layout < 0 || p.layout > 2 || p.channels > 4096) return {};
  if (p.groups != (p.draws_from() == Head::kCategorical ? p.channels : 1)) return {};
  for (int64_t i = 0; i < planes && whole; ++i) {
    Plane plane{};
    plane.channels = next(), plane.scale = next();
    plane.rows = 1, plane.transient = true;
    if (plane.channels < 1 || plane.scale < 1) return {};
    p.planes.push_back(plane);
  }
  for (int64_t i = 0; i < stages && whole; ++i) {
    Stage s{};
    for (int64_t* number :
         {&s.out, &s.first, &s.outputs, &s.weight, &s.bias, &s.condition, &s.start, &s.start_first, &s.activation,
          &s.residual, &s.residual_first, &s.phase, &s.group, &s.row_every, &s.row_at, &s.column_every, &s.column_at}) {
      *number = next();
    }
    const int64_t reads = next();
    for (int64_t k = 0; k < reads && whole; ++k) {
      Read r{};
      for (int64_t* number : {&r.plane, &r.dy, &r.dx, &r.first, &r.count}) *number = next();
      s.reads.push_back(r);
    }
    p.stages.push_back(std::move(s));
  }
  if (!whole || at != count || p.planes.empty() || p.planes[0].scale != 1 || p.planes[0].channels < p.channels)
    return {};
  if (p.output < 1 || p.output >= planes) return {};
  const Plane& output = p.planes[size_t(p.output)];
  if (output.scale != 1 || output.channels != p.head_channels()) return {};
  for (const Stage& s : p.stages) {
    if (!detail::sound(p, s)) return {};
  }
  detail::Writers writers(p.planes.size());
  for (size_t i = 0; i < p.stages.size(); ++i) writers[size_t(p.stages[i].out)].push_back(i);
  for (size_t i = 0; i < p.stages.size(); ++i) {
    if (!detail::admits(p, writers, i)) return {};
  }
  detail::derive(p);
  return detail::kept(p) <= kMostKept ? std::optional(p) : std::nullopt;
}

}  // namespace pygen::program
