import CoreML
import Foundation

/// Tiles in Core ML: model.mlpackage of clusir-export --target coreml.
///
///     let runner = try CoreMlRunner(package: url)
///     let model = try Clusir(description: json, run: runner.run)
public final class CoreMlRunner {
    private let model: MLModel

    /// - Parameter package: model.mlpackage, or model.mlmodelc as Xcode puts it into an app.
    public init(package: URL, units: MLComputeUnits = .all) throws {
        let compiled = package.pathExtension == "mlmodelc" ? package : try MLModel.compileModel(at: package)
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        model = try MLModel(contentsOf: compiled, configuration: configuration)
    }

    /// One tile, 1xCxTxT: from planes to planes.
    public func run(_ input: UnsafePointer<Float>, _ output: UnsafeMutablePointer<Float>) throws {
        let shape = model.modelDescription.inputDescriptionsByName["image"]!.multiArrayConstraint!.shape
        var strides = [NSNumber](repeating: 1, count: shape.count)
        for axis in stride(from: shape.count - 2, through: 0, by: -1) {
            strides[axis] = NSNumber(value: strides[axis + 1].intValue * shape[axis + 1].intValue)
        }
        let image = try MLMultiArray(dataPointer: UnsafeMutableRawPointer(mutating: input), shape: shape, dataType: .float32,
                                     strides: strides, deallocator: nil)
        let given = try MLDictionaryFeatureProvider(dictionary: ["image": image])
        let restored = try model.prediction(from: given).featureValue(for: "restored")!.multiArrayValue!
        // Rows of what Core ML answers may lie apart.
        let (sides, steps) = (restored.shape.map(\.intValue), restored.strides.map(\.intValue))
        restored.withUnsafeBufferPointer(ofType: Float.self) { from in
            var place = 0
            for channel in 0..<sides[1] {
                for row in 0..<sides[2] {
                    for column in 0..<sides[3] {
                        output[place] = from[channel * steps[1] + row * steps[2] + column * steps[3]]
                        place += 1
                    }
                }
            }
        }
    }
}
