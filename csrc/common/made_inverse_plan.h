// made_inverse: the order in which features are found and units are computed. Runs on the host. No torch headers.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pygen {

// What MadeUnits and MadeLayer point to.
struct MadePlan {
  struct Units {
    std::vector<int64_t> order, ends;
  };
  struct Layer {
    std::vector<int64_t> skip, packed;
  };
  std::vector<Units> units;
  std::vector<Layer> layers;
  int64_t hidden, steps, parameters, packed_size = 0;

  // Weights are packed in tiles of so many rows, of which the last one of a step is filled up.
  MadePlan(const std::vector<std::vector<int64_t>>& degrees, int64_t parameters, bool residual, int64_t tile)
      : hidden(int64_t(degrees.size()) - 1), parameters(parameters) {
    std::vector<int64_t> values;
    for (const auto& given : degrees) values.insert(values.end(), given.begin(), given.end());
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
    steps = int64_t(values.size());
    for (const auto& given : degrees) units.push_back(sorted(given, values));
    for (int64_t l = 0; l <= hidden; ++l) {
      Layer& layer = layers.emplace_back();
      if (residual && l >= 2 && l < hidden && l % 2 == 0)
        layer.skip = places(units[size_t(l + 1)], units[size_t(l - 1)]);
      for (int64_t step = 0; step < steps; ++step) {
        layer.packed.push_back(packed_size);
        packed_size += (rows(l, step) + tile - 1) / tile * tile * inputs(l, step);
      }
    }
  }

  // rows of a layer's weights that a step computes, and how many inputs they read
  int64_t rows(int64_t l, int64_t step) const {
    const Units& own = units[size_t(l < hidden ? l + 1 : 0)];
    return (own.ends[size_t(step)] - before(own, step)) * (l < hidden ? 1 : parameters);
  }
  int64_t inputs(int64_t l, int64_t step) const {
    const Units& below = units[size_t(l)];
    return l < hidden ? below.ends[size_t(step)] : before(below, step);
  }

 private:
  static int64_t before(const Units& u, int64_t step) { return step ? u.ends[size_t(step - 1)] : 0; }

  // Units of one degree stay in their order.
  static Units sorted(const std::vector<int64_t>& degrees, const std::vector<int64_t>& values) {
    Units u{std::vector<int64_t>(degrees.size()), std::vector<int64_t>(values.size())};
    std::vector<size_t> rank;
    for (const int64_t d : degrees) {
      rank.push_back(size_t(std::lower_bound(values.begin(), values.end(), d) - values.begin()));
      ++u.ends[rank.back()];
    }
    std::vector<int64_t> next;
    int64_t sum = 0;
    for (int64_t& end : u.ends) {
      next.push_back(sum);
      end = sum += end;
    }
    for (size_t i = 0; i < degrees.size(); ++i) u.order[size_t(next[rank[i]]++)] = int64_t(i);
    return u;
  }

  // of the units of one layer, in their order, the places of the units of the same numbers in another
  static std::vector<int64_t> places(const Units& own, const Units& other) {
    std::vector<int64_t> place(other.order.size()), result;
    for (size_t i = 0; i < place.size(); ++i) place[size_t(other.order[i])] = int64_t(i);
    for (const int64_t unit : own.order) result.push_back(place[size_t(unit)]);
    return result;
  }
};

}  // namespace pygen
