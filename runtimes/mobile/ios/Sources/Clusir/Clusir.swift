import CClusir
import Foundation

public struct ClusirError: Error, CustomStringConvertible {
    public let status: Int
    public let description: String
}

/// An opened model; may be used by any number of threads.
public final class Clusir: @unchecked Sendable {
    private let model: OpaquePointer
    private let tile: Tile? // lives as long as the model that calls it

    /// - Parameter path: NAME.ort or NAME.tile.ort, with NAME.tile.ort and NAME.router.ort in the same folder.
    public init(path: String, threads: Int32 = 0) throws {
        var options = clusir_open_options()
        options.struct_size = MemoryLayout<clusir_open_options>.size
        options.threads = threads
        var opened: OpaquePointer?
        try Clusir.check(clusir_open(path, &options, &opened))
        model = opened!
        tile = nil
    }

    /// Tiles in another runtime, such as `CoreMlRunner`.
    /// - Parameters:
    ///   - description: the text of model.json, which lies beside its model.
    ///   - run: one tile, float32 in 0..1, planes; called on the thread that calls `restore`, one tile at a time.
    public init(description: String, run: @escaping (UnsafePointer<Float>, UnsafeMutablePointer<Float>) throws -> Void) throws {
        let tile = Tile(run)
        var runner = clusir_runner()
        runner.struct_size = MemoryLayout<clusir_runner>.size
        runner.user = Unmanaged.passUnretained(tile).toOpaque()
        runner.run = { user, input, output in
            do {
                try Unmanaged<Tile>.fromOpaque(user!).takeUnretainedValue().call(input!, output!)
                return 0
            } catch {
                return 1
            }
        }
        var opened: OpaquePointer?
        try Clusir.check(clusir_open_runner(description, &runner, &opened))
        model = opened!
        self.tile = tile
    }

    private final class Tile {
        let call: (UnsafePointer<Float>, UnsafeMutablePointer<Float>) throws -> Void
        init(_ call: @escaping (UnsafePointer<Float>, UnsafeMutablePointer<Float>) throws -> Void) { self.call = call }
    }

    deinit { clusir_close(model) }

    /// Restores interleaved 8-bit pixels: RGB, or RGB + alpha that is kept. `progress` returns false to stop.
    public func restore(_ pixels: [UInt8], width: Int, height: Int, channels: Int,
                        progress: ((Int, Int) -> Bool)? = nil) throws -> [UInt8] {
        precondition(pixels.count == width * height * channels)
        var result = [UInt8](repeating: 0, count: pixels.count)
        final class Box { let call: ((Int, Int) -> Bool)?; init(_ call: ((Int, Int) -> Bool)?) { self.call = call } }
        let box = Box(progress)
        var options = clusir_run_options()
        options.struct_size = MemoryLayout<clusir_run_options>.size
        options.user = Unmanaged.passUnretained(box).toOpaque()
        options.progress = { user, done, total in
            let box = Unmanaged<Box>.fromOpaque(user!).takeUnretainedValue()
            return (box.call?(Int(done), Int(total)) ?? true) ? 0 : 1
        }
        let status = withExtendedLifetime(box) {
            pixels.withUnsafeBytes { from in
                result.withUnsafeMutableBytes { to -> clusir_status in
                    func image(_ data: UnsafeMutableRawPointer?) -> clusir_image {
                        clusir_image(data: data, width: UInt32(width), height: UInt32(height), channels: UInt32(channels),
                                     type: CLUSIR_U8, stride_bytes: 0)
                    }
                    var input = image(UnsafeMutableRawPointer(mutating: from.baseAddress))
                    var output = image(to.baseAddress)
                    return clusir_restore(model, &input, &output, &options)
                }
            }
        }
        try Clusir.check(status)
        return result
    }

    private static func check(_ status: clusir_status) throws {
        guard status == CLUSIR_OK else {
            throw ClusirError(status: Int(status.rawValue), description: String(cString: clusir_last_error()))
        }
    }
}
